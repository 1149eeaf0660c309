"""The two names of every tensor of a transformer, as rules that are read both ways: loading, saving, the names of LoRA
layers, recognition and tests ask the same ones.

A rule speaks of three places. *Native*: the original single file, as ComfyUI knows it. *Module*: the denoiser in memory,
which is diffusers' class with the joined layers of the native file (`families/native_layout.py`), so that native and module
names correspond one to one. *diffusers*: its folders and LoRA files, where a joined layer is several, each some rows of it.
"""
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Literal

import torch

WEIGHT_AND_BIAS: Mapping[str, str] = MappingProxyType({".weight": ".weight", ".bias": ".bias"})
NORM: Mapping[str, str] = MappingProxyType({".weight": ".weight"})
SCALE: Mapping[str, str] = MappingProxyType({".weight": ".scale"})
"""Of norms whose only tensor the original code calls a scale. ComfyUI writes `.weight` since February 2026, so both are
read; written is `.scale`, by which older versions recognize Flux."""
WHOLE: Mapping[str, str] = MappingProxyType({"": ""})
"""Of a name that is a tensor's."""


Swapped = Literal["never", "last", "always"]


@dataclass(frozen=True)
class Rows:
    """A linear layer of diffusers that is some rows of a joined one; `share` of the sum of all shares."""

    module: str
    share: int = 1


@dataclass(frozen=True)
class Split:
    """A name and the rows of a native layer that it means: the `start`…`stop` of `of` shares, or all of them `swapped`,
    with the two halves (shift and scale) the other way round; "last" only in the last block."""

    name: str
    start: int = 0
    stop: int = 1
    of: int = 1
    swapped: Swapped = "never"

    @property
    def share(self) -> tuple:
        """What it is but for its name."""
        return self.start, self.stop, self.of, self.swapped

    @property
    def is_whole(self) -> bool:
        """Whether it is just another name for the layer."""
        return self.stop - self.start == self.of and self.swapped == "never"

    @property
    def fraction(self) -> Fraction:
        """Of all rows."""
        return Fraction(self.stop - self.start, self.of)

    def native_rows(self, count: int) -> int | None:
        """How many rows the native layer has whose part has so many; None where the shares do not fit."""
        share = self.stop - self.start
        return None if count % share else count // share * self.of

    def rows(self, rows: int, columns: int) -> slice | torch.Tensor:
        """Which rows of a native tensor of this size they are, in their order: an index for its first axis. In the last
        block the layer has shift and scale alone, each as wide as what goes into it; others have more."""
        if self.swapped == "always" or (self.swapped == "last" and rows == 2 * columns):
            return torch.arange(rows).roll(rows // 2)
        return slice(rows * self.start // self.of, rows * self.stop // self.of)


@dataclass(frozen=True)
class Rule:
    """`native` and `module` are dotted names in which {} stands for a number, the same in the same order on both sides.

    `rows` are the layers that diffusers has in place of a joined one. `swapped`: diffusers has the two halves of its rows
    (shift and scale) the other way round. `tensors` are the endings of module → native names. `kernel` is that of a
    convolution. `others` are further names in LoRA files. `ratio` is that of the native weight's rows to its columns, where
    families call layers of different ones alike; 0: not told.
    """

    native: str
    module: str
    rows: tuple[Rows, ...] = ()
    swapped: Swapped = "never"
    tensors: Mapping[str, str] = field(default_factory=lambda: WEIGHT_AND_BIAS)
    kernel: tuple[int, ...] = ()
    others: tuple[Split, ...] = ()
    ratio: Fraction = Fraction()

    @property
    def is_layer(self) -> bool:
        """Whether a LoRA can change it: it is no norm and no single tensor."""
        return ".bias" in self.tensors

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """What diffusers has in place of the layer; () where it has the same."""
        if not self.rows:
            return (Split(self.module, swapped=self.swapped),) if self.swapped != "never" else ()
        ends = tuple(accumulate(rows.share for rows in self.rows))
        return tuple(Split(rows.module, end - rows.share, end, ends[-1]) for rows, end in zip(self.rows, ends))

    @cached_property
    def read_only(self) -> tuple[Split, ...]:
        """Names that are read and not written. OneTrainer numbers the parts of a joined layer."""
        numbered = (replace(split, name=f"{self.native}.{number}") for number, split in enumerate(self.splits) if self.rows)
        return (*numbered, *self.others)


class KeyMap:
    """The rules of a family."""

    def __init__(self, rules: Sequence[Rule]):
        self.rules = tuple(rules)

    @cached_property
    def _native(self) -> list[tuple[re.Pattern, Rule]]:
        return [(_pattern(rule.native), rule) for rule in self.rules]

    @cached_property
    def _module(self) -> list[tuple[re.Pattern, Rule]]:
        return [(_pattern(rule.module), rule) for rule in self.rules]

    @cached_property
    def _rows(self) -> list[tuple[re.Pattern, Rule, int]]:
        return [(_pattern(rows.module), rule, number) for rule in self.rules for number, rows in enumerate(rule.rows)]

    def module_layer(self, native: str) -> str | None:
        """The module's name of a layer, by its native name; None where no rule fits."""
        return next((_filled(rule.module, match) for pattern, rule in self._native if (match := pattern.fullmatch(native))),
                    None)

    def native_layer(self, module: str) -> str | None:
        """The way back."""
        return next((_filled(rule.native, match) for pattern, rule in self._module if (match := pattern.fullmatch(module))),
                    None)

    def rule_of(self, module: str) -> Rule | None:
        """The rule of a layer, by its module's name."""
        return next((rule for pattern, rule in self._module if pattern.fullmatch(module)), None)

    def module_tensor(self, native: str) -> str | None:
        """The module's name of a tensor, by its native name."""
        for layer, ending in _cuts(native):
            for pattern, rule in self._native:
                if match := pattern.fullmatch(layer):
                    # An ending that the module has too is read as well: a norm's scale may be called its weight.
                    own = next((module for module, known in rule.tensors.items() if known == ending), None)
                    own = ending if own is None and ending in rule.tensors else own
                    if own is not None:
                        return _filled(rule.module, match) + own
        return None

    def native_tensor(self, module: str) -> str | None:
        """The native name of a tensor, by its module's name."""
        for layer, ending in _cuts(module):
            for pattern, rule in self._module:
                if (match := pattern.fullmatch(layer)) and ending in rule.tensors:
                    return _filled(rule.native, match) + rule.tensors[ending]
        return None

    def rule_of_native(self, layer: str) -> tuple[Rule, tuple[str, ...]] | None:
        """(the rule of a layer, its numbers), by its native name."""
        return next(((rule, match.groups()) for pattern, rule in self._native if (match := pattern.fullmatch(layer))), None)

    def joined(self, diffusers: str) -> tuple[str, int] | None:
        """(module's name of the joined layer, which of its splits) of a layer of diffusers; None where it is no part of
        one."""
        return next(((_filled(rule.module, match), number) for pattern, rule, number in self._rows
                     if (match := pattern.fullmatch(diffusers))), None)

    def parts_from(self, first: str) -> tuple[str, list[str]] | None:
        """(module's name of a joined layer, diffusers' of all its parts in their order), by the first part's name."""
        return next(((_filled(rule.module, match), [_filled(rows.module, match) for rows in rule.rows])
                     for pattern, rule, number in self._rows if number == 0 and (match := pattern.fullmatch(first))), None)

    def is_swapped(self, module: str, last: int) -> bool:
        """Whether diffusers has the halves of a layer's rows the other way round, in a model whose last block is `last`."""
        for pattern, rule in self._module:
            if match := pattern.fullmatch(module):
                return rule.swapped == "always" or (rule.swapped == "last" and int(match[1]) == last)
        return False

    def blocks(self, names: Iterable[str], block: str) -> int:
        """How many blocks a model has, by its native names: `block` is for example "joint_blocks" or, where blocks stand in
        groups, "content_mode_blocks.image"."""
        rest = (name.removeprefix(f"{block}.").partition(".")[0] for name in names if name.startswith(f"{block}."))
        numbers = {int(number) for number in rest if number.isdecimal()}
        return max(numbers) + 1 if numbers else 0


def _pattern(name: str) -> re.Pattern:
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d{1,3})"))


def _filled(name: str, match: re.Match) -> str:
    return name.format(*match.groups())


def _cuts(tensor: str) -> Iterator[tuple[str, str]]:
    """(layer, ending) as a tensor's name may be cut."""
    layer, dot, ending = tensor.rpartition(".")
    yield layer, dot + ending
    yield tensor, ""
