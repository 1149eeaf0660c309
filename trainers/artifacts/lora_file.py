"""LoRA files of any maker, read into layers: the same numbers, whatever the tensors are called (`layer_names`)."""
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .adapters import FORMATS
from .adapters.dora import decomposed, dora_scale
from .adapters.lora import LoraWeight
from .changes import change_of_parts, rank_of, shape_of, with_kernel, with_scale
from .layer_names.parts import ALPHA, DORA, DOWN, MID, UP, split_key
from .peft_config import read_peft_config
from .tensor_header import read_header
from .weights import Weights


def is_known(part: str) -> bool:
    """Whether a change can be computed here from such a part."""
    return part in (MID, ALPHA, DORA) or any(part in format.parts for format in FORMATS.values())


@dataclass
class FileLayer:
    """What a file holds of one layer: the names of its tensors by their parts. They are read when they are asked for, in
    float32."""

    key: str
    file: Weights
    names: dict[str, str] = field(default_factory=dict)
    scale_beside: float | None = None
    """What the product of the factors is multiplied with, where the file says it outside its tensors."""
    kernel: tuple[int, ...] | None = None
    """Of the layer's weight, where it is known: LoHa and LoKr may have it flat."""

    def tensors(self) -> dict[str, Tensor]:
        """All of them, as ComfyUI reads them: with the scale beside the file and all dimensions of DoRA's magnitudes."""
        found = with_scale({part: self.file.weight(name) for part, name in self.names.items()}, self.scale_beside)
        if DORA in found and UP in found:
            found[DORA] = dora_scale(found[DORA], found[UP], max(found[UP].ndim, found[DOWN].ndim))
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {part: self.file.shape(name) for part, name in self.names.items()}

    def with_alpha(self) -> "FileLayer":
        """With an alpha for kohya's files, which state it where others leave out the scale 1."""
        given = ALPHA in self.names or self.scale_beside is not None or not rank_of(self.shapes())
        return self if given else replace(self, scale_beside=1.0)

    @property
    def is_low_rank(self) -> bool:
        """Two factors and nothing else: such layers can be joined exactly."""
        return {DOWN, UP} <= self.names.keys() <= {DOWN, UP, ALPHA}

    @property
    def is_dora(self) -> bool:
        return DORA in self.names

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors in the file."""
        factor = next(name for part, name in self.names.items() if part not in (ALPHA, DORA))
        return self.file.entries[factor].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the change, from the shapes of the factors."""
        shape = shape_of(self.shapes())
        if shape is None:
            raise UserError(f"{self.key} is incomplete: {', '.join(self.names)} make no change together")
        return tuple(with_kernel(torch.empty(shape, device="meta"), self.kernel).shape)

    def low_rank(self) -> LoraWeight:
        found = self.tensors()
        down, up = found[DOWN], found[UP]
        alpha = float(found[ALPHA]) if ALPHA in found else float(len(down))
        if down.ndim == 2 and self.kernel:
            down = with_kernel(down, self.kernel)
            up = up.reshape(*up.shape[:2], *[1] * (down.ndim - 2))
        return LoraWeight(self.key, down, up, alpha)

    def change(self, base: Tensor | None = None) -> Tensor:
        """The change of the weight, float32 [out, in, …]. That of a DoRA depends on the `base`: UserError without it."""
        if not self.is_dora:
            return with_kernel(change_of_parts(self.tensors()), self.kernel)
        if base is None:
            raise UserError(f"{self.key} is a DoRA layer: what it changes depends on the base model, so it cannot be merged "
                            "with others. Bake it into a checkpoint instead")
        found = self.tensors()
        return decomposed(self.key, base, change_of_parts(found).reshape(base.shape), found[DORA])


@dataclass
class LoraFile:
    """A LoRA file's layers by key, its metadata, the names of tensors that fit no layer, and what else is to be said."""

    name: str
    layers: dict[str, FileLayer]
    metadata: dict[str, str]
    unknown: list[str]
    notes: list[str] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """For a report."""
        left = [f"{len(self.unknown)} tensors of {self.name}, for example {self.unknown[0]}, are of no kind that is read "
                "here, or incomplete, and were left out"] if self.unknown else []
        return [*left, *self.notes]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors of its layers, by their names in the file."""
        return {name: layer.file.shape(name) for layer in self.layers.values() for name in layer.names.values()}


def read_lora(path: Path) -> LoraFile:
    """What a LoRA file holds, from its header. Raises UserError for what is none."""
    metadata, file = read_header(path)[1], Weights.of_file(path)
    layers, unknown = {}, []
    for name in file:
        split = split_key(name)
        if split and is_known(split.part):
            names = layers.setdefault(split.layer, FileLayer(split.layer, file)).names
            if split.part not in names:  # else it is of a second adapter in the file
                names[split.part] = name
                continue
        unknown.append(name)
    for key, layer in list(layers.items()):
        shapes = layer.shapes()
        if shape_of(shapes) is None or prod(shapes.get(ALPHA, ())) != 1:
            unknown += layers.pop(key).names.values()
    if not layers:
        raise UserError(f"{path.name!r} holds no LoRA layers. Choose a LoRA file.")
    config = read_peft_config(path, metadata, file)
    for layer in layers.values():
        if ALPHA not in layer.names:
            layer.scale_beside = config.scale(layer.key, rank_of(layer.shapes()))
    for name in unknown:  # what is left out may be all that is wrong with a file
        file.weight(name)
    notes = [f"{path.name}: {note}" for note in config.notes]
    return LoraFile(path.name, layers, metadata, unknown, notes)
