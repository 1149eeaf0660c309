"""Names of the layers of a transformer family, out of its key map: what `FamilyNames` asks of a family."""
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Literal

from .blocks import ATTENTION, EXTRA
from .brought import BROUGHT, FamilyNames
from .family import named_in, stated_base
from .key_map import KeyMap, Rule, Split
from .parts import DOWN, UP, split_key
from .spelling import UNET, read_spelling, underscored
from .table import Layer, LayerNames, released_text, text_layers
from .text import Encoder

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.", "")
"""Before a denoiser's native names: in all-in-one files, in ComfyUI's memory, in files of their own: some of those that
Cosmos' code writes, and all others."""


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
    smaller: tuple[Mapping[str, int], ...] = ()
    """Of released models that have fewer blocks: how many of each kind, by `numbered`'s words for them."""
    stated: tuple[str, ...] = ()
    reads: str = ""
    """The layer (by its native name) that reads what text encoders say: its width tells theirs."""
    written: Literal["kohya", "comfyui"] = "kohya"
    """Whose names LoRA files get that are trained here: those that most programs of the family write and read."""
    like: str = ""
    """The family whose names it has: a LoRA file that fits both is of that one, unless it says otherwise."""
    shared: bool = False
    """Whether models that are not known here have layers of the same names: a LoRA of other widths is of such a one, unless
    it says otherwise."""

    @property
    def lists(self) -> tuple[tuple[str, ...], ...]:
        return (self.blocks[:-1], *(tuple(block for block in self.blocks[:-1] if self._has_block(counts, block))
                                    for counts in self.smaller))

    def _has_block(self, counts: Mapping[str, int], block: str) -> bool:
        word = block.rstrip("0123456789")
        return word not in counts or int(block.removeprefix(word)) < counts[word]

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

    def read_width(self, shapes: Mapping[str, Sequence[int]], prefix: str = "") -> int:
        shape = shapes.get(f"{prefix}{self.reads}.weight", ()) if self.reads else ()
        packed = 2 if f"{prefix}{self.reads}.weight_scale_2" in shapes else 1  # in four bits two numbers are one byte
        return shape[1] * packed if len(shape) == 2 else 0

    def owns_lora(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        """By the names of its layers: the family that knows most of them. Where several know as many, the shapes of layers
        tell that are cut otherwise in each, then the metadata's word, then the width of what goes into a layer. Names that
        only diffusers uses are those of too many models to tell anything without that."""
        layers = {}
        for key, shape in shapes.items():
            if (split := split_key(key)) and (spelled := read_spelling(split.layer)).part == UNET:
                layers.setdefault(spelled.core, {})[split.part] = shape
        known = [(each, each._claimed(layers)) for each in BROUGHT.values() if isinstance(each, TransformerNames)]
        most = max((count for _, count in known), default=0)
        claiming = [each for each, count in known if count == most > 0]
        widths, stated = _widths(layers), stated_base(metadata)
        if self.shared and widths and not widths & self.widths and not named_in(stated, [self]):
            return False
        alike, named = {each.family for each in claiming}, named_in(stated, claiming)
        claiming = [each for each in claiming if each.like not in alike or each in named]
        if self not in claiming or len(claiming) == 1:
            return self in claiming
        claiming = [each for each in claiming if each._may_have(layers)] or claiming
        is_native = any(each._is_native(core) for each in claiming for core in layers)
        if len(claiming) > 1 and stated:
            claiming = named or (claiming if is_native else [])
        if len(claiming) > 1:
            as_wide = [each for each in claiming if isinstance(each, TransformerNames) and widths & each.widths]
            claiming = as_wide or (claiming if is_native else [])
        return self in claiming[:1]

    def _claimed(self, layers: Collection[str]) -> int:
        """How many of a file's layers it knows; none where the file may not be its own: names of diffusers' have to be its
        layers', all of them."""
        count = sum(map(self.knows, layers))
        return count if count == len(layers) or any(map(self._is_native, layers)) else 0

    def _is_native(self, core: str) -> bool:
        """Whether a layer's name tells the family by the block it begins with."""
        return not self.shared and self._native_blocks.match(core) is not None

    @cached_property
    def _native_blocks(self) -> re.Pattern:
        return re.compile(rf"({'|'.join(map(underscored, self.numbered))})_\d")

    def _may_have(self, layers: Mapping[str, Mapping[str, tuple[int, ...]]]) -> bool:
        """Whether low-rank factors have the shapes that its layers may have."""
        found = ((self.table().index.get((UNET, core)), parts.get(UP, ()), parts.get(DOWN, ()))
                 for core, parts in layers.items())
        return all(layer.may_have((up[0], down[1])) for layer, up, down in found if layer and len(up) == len(down) == 2)

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
            found = self.key_map.rule_of_native(name.removeprefix(prefix).removesuffix(".weight"))
            if found and found[0].is_layer:
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
            ranges = [range(counts.get(rule.native.partition(".{}")[0], 0))] * rule.native.count("{}")
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
                     ratio=rule.ratio, splits=filled(rule.splits), read_only=filled(rule.read_only))

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
    def block_lists(self) -> Mapping[str, str]:
        """Native names of the kinds of blocks, in the order of the data flow → the modules that hold them."""
        names = {rule.native.partition(".{}.")[0]: rule.module.partition(".{}.")[0] for rule in self.key_map.rules}
        return {native: names[native] for native in self.numbered}

    @cached_property
    def _titles(self) -> dict[str, str]:
        """Native and diffusers' names of the kinds of blocks, underscored → how block weights call them."""
        return {underscored(name): title for native, title in self.numbered.items()
                for name in (self.block_lists[native], native)}

    @cached_property
    def _block_names(self) -> re.Pattern:
        return re.compile(rf"({'|'.join(sorted(self._titles, key=len, reverse=True))})_(\d{{1,3}})(?:_|$)")


def _widths(layers: Mapping[str, Mapping[str, tuple[int, ...]]]) -> set[int]:
    """Of what goes into the layers of a LoRA file."""
    return {parts[DOWN][1] for parts in layers.values() if len(parts.get(DOWN, ())) > 1}
