"""Names that a model family brings with it: what the others ask where a file is of no UNet."""
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol


class FamilyNames(Protocol):
    """What a family says about the names of its layers: the one authority for recognition, extraction, conversion, stacking,
    block weights and the load check."""

    family: str
    """Its identifier in specs."""
    title: str
    """What people call it."""
    blocks: tuple[str, ...]
    """All blocks in the order of the data flow, as block weights call them; `BASE` is text encoders, `EXTRA` the rest."""
    stated: tuple[str, ...] = ()
    """What of a base's name or architecture in metadata tells the family, in small letters."""

    @property
    def lists(self) -> tuple[tuple[str, ...], ...]:
        """The blocks that comma lists of block weights stand for: text encoders, then every block."""
        return (self.blocks[:-1],)

    def owns_model(self, names: Collection[str]) -> bool:
        """Whether a file with tensors of these names holds a denoiser of the family."""
        ...

    def read_width(self, shapes: Mapping[str, Sequence[int]], prefix: str = "") -> int:
        """Width of the states of text that a denoiser reads, whose names in the file begin with `prefix`; 0 where models of
        the family do not differ in it."""
        return 0

    def owns_lora(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        """Whether a LoRA file with these tensors is for the family."""
        ...

    def layers(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Any]:
        """Every layer of a model that a LoRA can change (`table.Layer`): its native, diffusers' and LoRA-file name and its
        block, from the names and shapes of the model's tensors."""
        ...

    def table(self) -> Any | None:
        """The layers (`table.LayerNames`) of the released model; None where names are read from the model itself."""
        return None

    def encoders(self) -> Collection[str]:
        """ComfyUI's names of its text encoders, which tell a CLIP's family."""
        return ()

    def native(self, name: str) -> str:
        """The native name, underscored, of the layer that a name in a LoRA file means, underscored and without prefixes;
        the name itself where it means none."""
        return name

    def block(self, name: str) -> str:
        """The block of a layer, by its native name or by that in a LoRA file, underscored and without prefixes."""
        ...

    def kind(self, name: str) -> str:
        """"attention" or "feed_forward" of a layer whose native name does not say so; else ""."""
        return ""


BROUGHT: dict[str, FamilyNames] = {}
"""Of families that are not described in this folder, by their identifiers."""
