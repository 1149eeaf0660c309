"""LoRA (Hu et al. 2021, arXiv:2106.09685): alpha / rank · up · down, for convolutions also as LoCon with a core between."""
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layer_names.parts import ALPHA, DOWN, MID, UP
from .format import AdapterFormat, Shape, Shapes, Tensors, scalar, stored


@dataclass(frozen=True)
class LoraWeight:
    """The factors of one layer: `down` [rank, in, …] and `up` [out, rank, …]."""

    key: str
    down: Tensor
    up: Tensor
    alpha: float

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            f"{self.key}.lora_down.weight": stored(self.down, dtype),
            f"{self.key}.lora_up.weight": stored(self.up, dtype),
            f"{self.key}.alpha": scalar(self.alpha, dtype),
        }

    def change_norm(self) -> float:
        """Frobenius norm of alpha / rank · up · down, from the factors' Gram matrices: no [out, in] product is made."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            return float("nan")
        squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        return float(self.alpha / len(down) * squared.sqrt())


class LoraFormat(AdapterFormat):
    title = "LoRA"
    parts = (DOWN, UP)
    ranked = (DOWN,)
    network = "networks.lora"

    def shape(self, shapes: Shapes) -> Shape | None:
        return _shape(shapes[DOWN], shapes[UP], shapes.get(MID))

    def change(self, tensors: Tensors) -> Tensor:
        down, up, scale = tensors[DOWN], tensors[UP], self.scale(tensors)
        if MID in tensors:
            return scale * torch.einsum("orxy,rskl,sixy->oikl", up, tensors[MID], down)
        return scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])

    def norm(self, tensors: Tensors) -> float:
        if MID in tensors:
            return super().norm(tensors)
        alpha = float(tensors[ALPHA]) if ALPHA in tensors else float(len(tensors[DOWN]))
        return LoraWeight("", tensors[DOWN], tensors[UP], alpha).change_norm()


def _shape(down: Sequence[int], up: Sequence[int], mid: Sequence[int] | None) -> Shape | None:
    if mid is not None:  # Tucker form of LoCon: mid [rank, rank, height, width] between 1×1 factors
        fits = len(mid) == len(down) == len(up) == 4 and list(mid[:2]) == [up[1], down[0]] and (
            [*up[2:], *down[2:]] == [1, 1, 1, 1])
        return (up[0], down[1], *mid[2:]) if fits else None
    inner = 1
    for size in up[1:]:
        inner *= size
    return (up[0], *down[1:]) if inner == down[0] and down[0] > 0 and len(down) > 1 < len(up) else None
