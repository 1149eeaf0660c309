"""What every kind of adapter says of its layers in a file."""
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...spec import LoraSpec
from ..layer_names.parts import ALPHA, DORA

Shape = tuple[int, ...]
Shapes = Mapping[str, Sequence[int]]
Tensors = Mapping[str, Tensor]


class AdapterWeight(Protocol):
    """What was trained for one layer, and what a file stores of it."""

    @property
    def key(self) -> str: ...

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The layer's part of a file, on the CPU."""
        ...

    def change_norm(self) -> float:
        """Frobenius norm of the change of the layer's weight; not a finite number if a factor is not finite."""
        ...


class AdapterFormat:
    """The layers of one kind, as tensors by ComfyUI's names of their parts. The changes that they stand for are those of
    LyCORIS' `modules/*.py` and of ComfyUI's `comfy/weight_adapter/*.py`."""

    title: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    """The tensors that only this kind has; a layer is of this kind if it has one of them."""
    ranked: ClassVar[tuple[str, ...]] = ()
    """Those whose first axis is the rank."""
    network: ClassVar[str] = "lycoris.kohya"
    """kohya's name of the module that trains such layers."""

    def holds(self, parts: Collection[str]) -> bool:
        return any(part in parts for part in self.parts)

    def rank(self, shapes: Shapes) -> int | None:
        """What alpha is divided by; None where a layer is not scaled."""
        part = next((part for part in self.ranked if part in shapes), None)
        return shapes[part][0] if part and shapes[part] else None

    def shape(self, shapes: Shapes) -> Shape | None:
        """Of the change; None for tensors that make none together. May raise KeyError or IndexError for those too."""
        raise NotImplementedError

    def change(self, tensors: Tensors) -> Tensor:
        """[out, in, …] without DoRA's magnitudes."""
        raise NotImplementedError

    def norm(self, tensors: Tensors) -> float:
        """Frobenius norm of the change."""
        return float(self.change({part: tensor.float() for part, tensor in tensors.items() if part != DORA}).norm())

    def scale(self, tensors: Tensors) -> float:
        """What the product of the factors is multiplied with: alpha / rank."""
        rank = self.rank({part: tensor.shape for part, tensor in tensors.items()})
        return float(tensors[ALPHA]) / rank if ALPHA in tensors and rank else 1.0

    def rescaled(self, tensors: Tensors, scale: float) -> dict[str, Tensor]:
        """With a scale that the file keeps beside its tensors, as alpha."""
        rank = self.rank({part: tensor.shape for part, tensor in tensors.items()})
        return {**tensors, ALPHA: torch.tensor(float(scale * rank))} if rank else dict(tensors)

    def arguments(self, spec: LoraSpec) -> dict[str, object]:
        """What kohya's `ss_network_args` say of the kind."""
        return {}


def product_shape(shapes: Shapes, name: str, tucker: Sequence[int] | None) -> Shape | None:
    """Of a factor that is there whole or as a product of two."""
    if name in shapes:
        return tuple(shapes[name])
    first, second = shapes[f"{name}_a"], shapes[f"{name}_b"]
    if len(first) != 2 or len(second) != 2:
        return None
    if tucker is None:
        return (first[0], second[1]) if first[1] == second[0] > 0 else None
    return (first[1], second[1], *tucker[2:]) if list(tucker[:2]) == [first[0], second[0]] else None


def product(tensors: Tensors, name: str, tucker: str = "") -> Tensor:
    """A factor that is there whole or as a product of two."""
    if name in tensors:
        return tensors[name]
    first, second = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return torch.einsum("ijkl,jr,ip->prkl", tensors[tucker], second, first) if tucker in tensors else first @ second


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """In `dtype` if that is exact, else in float32: rounding an alpha would weaken or strengthen the layer."""
    rounded = torch.tensor(value, dtype=dtype)
    return rounded if rounded.item() == value else torch.tensor(value, dtype=torch.float32)
