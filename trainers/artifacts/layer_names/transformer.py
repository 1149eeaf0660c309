"""Names of the layers of a transformer family, out of its key map: what `FamilyNames` asks of a family."""
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from .blocks import ATTENTION, EXTRA
from .brought import BROUGHT, FamilyNames
from .family import stated_base
from .key_map import KeyMap, Rule, Split
from .parts import DOWN, split_key
from .spelling import UNET, read_spelling, underscored
from .table import Layer, LayerNames, released_text, text_layers
from .text import Encoder

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
    text: tuple[Encoder, ...] = ()
    absent: str = ""
    """Layers by their native names that no released model has, though its block has others."""
    attention: str = ""
    """Layers by their native names, underscored, that count as attention though they do not say so."""
    widths: frozenset[int] = frozenset()
    """Of the released models' streams; they tell LoRA files apart whose names alone do not."""
    smaller: tuple[int, ...] = ()
    """Numbers of blocks of released models that have fewer than `blocks`."""
    stated: tuple[str, ...] = ()

    @property
    def lists(self) -> tuple[tuple[str, ...], ...]:
        return (self.blocks[:-1], *(self.blocks[:1 + count] for count in self.smaller))

    # ---- whose file it is ------------------------------------------------------------------------------------------

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
        """By native names of its blocks. diffusers' have to be those of layers of this family, all of them; where they are
        those of others too, the metadata's word counts, or the width of what goes into a layer."""
        cores, widths = set(), set()
        for key, shape in shapes.items():
            if split := split_key(key):
                spelled = read_spelling(split.layer)
                cores |= {spelled.core} if spelled.part == UNET else set()
                widths |= {shape[1]} if split.part == DOWN and len(shape) > 1 else set()
        if any(re.match(rf"({'|'.join(self.numbered)})_\d", core) for core in cores):
            return True
        if not cores or not all(map(self.knows, cores)):
            return False
        others = [each for each in BROUGHT.values() if isinstance(each, TransformerNames) and each is not self]
        if any(not any(each.knows(core) for each in others) for core in cores):
            return True
        if stated := stated_base(metadata):
            return any(word in stated for word in self.stated)
        return bool(widths & self.widths)

    def knows(self, core: str) -> bool:
        """Whether a name in a LoRA file, underscored and without prefixes, means a layer of its denoiser."""
        return (UNET, core) in self.table().index

    # ---- its layers ------------------------------------------------------------------------------------------------

    def layers(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Layer]:
        """Of a model's linear layers and convolutions, and of the text encoders beside it."""
        prefix = self.prefix(shapes)
        for name, shape in shapes.items():
            if prefix is None or not name.startswith(prefix) or not name.endswith(".weight") or len(shape) not in (2, 4):
                continue
            if found := self.key_map.rule_of_native(name.removeprefix(prefix).removesuffix(".weight")):
                yield self._layer(*found, tuple(shape[2:]), name)
        yield from text_layers(shapes, self.text)

    def table(self) -> LayerNames:
        return self._table

    @cached_property
    def _table(self) -> LayerNames:
        """Of all released models together."""
        counts = {name: sum(block.startswith(title) for block in self.blocks) for name, title in self.numbered.items()}
        found = []
        for rule in self.key_map.rules:
            ranges = [range(counts.get(rule.native.split(".")[0], 0))] * rule.native.count("{}")
            found += [self._layer(rule, tuple(map(str, numbers)), rule.kernel) for numbers in product(*ranges)
                      if rule.is_layer and not re.fullmatch(self.absent, rule.native.format(*numbers))]
        found.sort(key=lambda layer: self.blocks.index(layer.block))
        return LayerNames.of(self.family, [*found, *released_text(self.text)])

    def _layer(self, rule: Rule, numbers: tuple[str, ...], kernel: tuple[int, ...], tensor: str = "") -> Layer:
        def filled(splits: tuple[Split, ...]) -> tuple[Split, ...]:
            return tuple(replace(split, name=split.name.format(*numbers)) for split in splits)
        native = rule.native.format(*numbers)
        return Layer(f"lora_unet_{underscored(native)}", f"transformer.{rule.module.format(*numbers)}",
                     f"diffusion_model.{native}", kernel, tensor, own_block=self.block(underscored(native)),
                     splits=filled(rule.splits), read_only=filled(rule.read_only))

    def encoders(self) -> Collection[str]:
        return [each.native for each in self.text]

    # ---- blocks ----------------------------------------------------------------------------------------------------

    def native(self, name: str) -> str:
        layer = self.table().index.get((UNET, name))
        return underscored(layer.native.removeprefix("diffusion_model.")) if layer else name

    def block(self, name: str) -> str:
        match = self._block_names.match(name)
        return f"{self._titles[match[1]]}{int(match[2]):02}" if match else EXTRA

    def kind(self, name: str) -> str:
        return ATTENTION if self.attention and re.fullmatch(self.attention, name) else ""

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
