"""Names of the layers of a transformer family, out of its key map: what `FamilyNames` asks of a family."""
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from .brought import FamilyNames
from .key_map import KeyMap
from .parts import split_key
from .spelling import underscored
from .table import Layer

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
"""Before a denoiser's native names: in all-in-one files, in ComfyUI's memory, in a file of its own."""


@dataclass(frozen=True)
class TransformerNames(FamilyNames):
    """`marker` is a tensor (by its native name) that only models of the family have, `without` one that they lack;
    `numbered` are the native names of its kinds of blocks and how block weights call them ("joint_blocks" → "JOINT")."""

    family: str
    title: str
    blocks: tuple[str, ...]
    key_map: KeyMap
    marker: str
    numbered: Mapping[str, str]
    without: tuple[str, ...] = ()
    belongs: Callable[[Mapping[str, tuple[int, ...]]], bool] = lambda shapes: True
    """Whether a LoRA file with tensors of these names and shapes is for the family and not for one with the same names."""

    def prefix(self, names: Collection[str]) -> str | None:
        """What stands before the native names of a denoiser of this family in a file; None where there is none."""
        return next((prefix for prefix in PREFIXES if self._has(names, prefix + self.marker)
                     and not any(self._has(names, prefix + each) for each in self.without)), None)

    def _has(self, names: Collection[str], name: str) -> bool:
        # A norm's only tensor is called its scale or its weight.
        return name in names or (name.endswith(".scale") and f"{name.removesuffix('scale')}weight" in names)

    def owns_model(self, names: Collection[str]) -> bool:
        return self.prefix(names) is not None

    def owns_lora(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        layers = {split.layer for key in shapes if (split := split_key(key))}
        blocks = re.compile("|".join(rf"(?:^|_){name}_\d" for name in self.numbered))
        return any(blocks.search(underscored(layer)) for layer in layers) and self.belongs(shapes)

    def layers(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Layer]:
        """Of a model's linear layers and convolutions; those of text encoders in the same file come from `table`."""
        prefix = self.prefix(shapes)
        if prefix is None:
            return
        for name, shape in shapes.items():
            native = name.removeprefix(prefix)
            if not name.startswith(prefix) or not native.endswith(".weight") or len(shape) not in (2, 4):
                continue
            layer = native.removesuffix(".weight")
            module = self.key_map.module_layer(layer)
            if module is not None:
                yield Layer(f"lora_unet_{underscored(layer)}", f"transformer.{module}", f"diffusion_model.{layer}",
                            tuple(shape[2:]), name, own_block=self.block(underscored(layer)))

    def block(self, name: str) -> str:
        match = self._block_names.match(name)
        return f"{self._titles[match[1]]}{int(match[2]):02}" if match else "EXTRA"

    @cached_property
    def _titles(self) -> dict[str, str]:
        """Native and diffusers' names of the kinds of blocks → how block weights call them."""
        start = re.compile(r"(\w+)\.\{\}\.")
        pairs = ((start.match(rule.native), start.match(rule.module)) for rule in self.key_map.rules)
        same = {module[1]: self.numbered[native[1]] for native, module in pairs if native and module}
        return {**same, **self.numbered}

    @cached_property
    def _block_names(self) -> re.Pattern:
        return re.compile(rf"({'|'.join(sorted(self._titles, key=len, reverse=True))})_(\d{{1,3}})(?:_|$)")
