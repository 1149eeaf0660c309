"""What the relatives of LoRA store for a layer, under the names that LyCORIS writes and ComfyUI and A1111 read.

Every class offers `key`, `tensors(dtype)` and `change_norm()`, as LoraWeight does. The changes they stand for are those of
LyCORIS' `modules/*.py` and of ComfyUI's `comfy/weight_adapter/*.py`.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from .lora import LoraWeight, scalar, stored

EPSILON = torch.finfo(torch.float32).eps
"""ComfyUI and LyCORIS add this to a column's norm before they divide by it."""


@dataclass(frozen=True)
class Columns:
    """Of every input column (or input channel) [in], float32: the squared norm of the base W, the inner product of W and
    scale · up · down, and the squared norm of scale · up · down."""

    base: Tensor
    product: Tensor
    added: Tensor

    def norms(self) -> Tensor:
        """Of the columns of W + scale · up · down, a little more than zero."""
        return (self.base + 2 * self.product + self.added).clamp(min=0).sqrt() + EPSILON


def squared_norms(weight: Tensor) -> Tensor:
    """Of the input columns of a weight [out, in, …]: float32 [in]."""
    return weight.float().transpose(0, 1).flatten(1).square().sum(dim=1)


@torch.no_grad()
def compare_columns(weight: Tensor, down: Tensor, up: Tensor, scale: float, base: Tensor | None = None) -> Columns:
    """Of W [out, in, …] and the factors `down` [rank, in, …] and `up` [out, rank, …]; `up · down` is never made.

    `base` is squared_norms(weight), if it is known.
    """
    up, down = up.float().flatten(1), down.float().flatten(2) if down.ndim > 2 else down.float()[..., None]
    with torch.autocast(weight.device.type, enabled=False):  # it would multiply in half precision
        correlation = (up.T @ weight.float().flatten(1)).view_as(down)
        squared = torch.einsum("rs,sik->rik", up.T @ up, down)
    return Columns(
        squared_norms(weight) if base is None else base,
        scale * (correlation * down).sum(dim=(0, 2)),
        scale**2 * (squared * down).sum(dim=(0, 2)).clamp(min=0),
    )


@dataclass(frozen=True)
class DoraWeight:
    """A LoRA whose sum with the base is scaled, column by column, to `lengths` [1, in, (1, 1)].

    The change of a weight is (W + scale · up · down) · lengths / norms - W. On the input axis, because ComfyUI divides
    lengths on the output axis by the norms of the bare base.
    """

    lora: LoraWeight
    lengths: Tensor
    columns: Columns

    @property
    def key(self) -> str:
        return self.lora.key

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The lengths stay float32: rounding them would rescale the whole base by up to a two-thousandth (fp16)."""
        return self.lora.tensors(dtype) | {f"{self.key}.dora_scale": stored(self.lengths, torch.float32)}

    def change_norm(self) -> float:
        """Of factor · scale · up · down + (factor - 1) · W, from the columns."""
        factor, columns = self.lengths.flatten() / self.columns.norms(), self.columns
        squared = factor**2 * columns.added + 2 * factor * (factor - 1) * columns.product + (factor - 1)**2 * columns.base
        return float(squared.clamp(min=0).sum().sqrt())


@dataclass(frozen=True)
class LohaWeight:
    """alpha / rank · (first_a · first_b) ∘ (second_a · second_b), with `*_a` [out, rank] and `*_b` [rank, in · kernel]."""

    key: str
    first_a: Tensor
    first_b: Tensor
    second_a: Tensor
    second_b: Tensor
    alpha: float

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        factors = {"hada_w1_a": self.first_a, "hada_w1_b": self.first_b, "hada_w2_a": self.second_a,
                   "hada_w2_b": self.second_b}
        return {f"{self.key}.{name}": stored(factor, dtype) for name, factor in factors.items()} | {
            f"{self.key}.alpha": scalar(self.alpha, dtype)}

    def change_norm(self) -> float:
        """A hundred rows at a time: the norm of an element-wise product needs its elements."""
        squared = sum(
            float(((first.float() @ self.first_b.float()) * (second.float() @ self.second_b.float())).square().sum())
            for first, second in zip(self.first_a.split(100), self.second_a.split(100))
        )
        return self.alpha / len(self.first_b) * squared**0.5


@dataclass(frozen=True)
class LokrWeight:
    """scale · small ⊗ large, where `large` may be a pair of factors [large out, rank], [rank, large in · kernel].

    Readers apply alpha / rank only if there is a rank, that is, a pair; else `scale` goes into the small factor.
    """

    key: str
    small: Tensor
    large: Tensor | tuple[Tensor, Tensor]
    scale: float

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        if isinstance(self.large, tuple):
            left, right = self.large
            factors = {"lokr_w1": self.small, "lokr_w2_a": left, "lokr_w2_b": right}
            alpha = self.scale * len(right)
        else:
            factors = {"lokr_w1": self.small * self.scale, "lokr_w2": self.large}
            alpha = 1.0
        return {f"{self.key}.{name}": stored(factor, dtype) for name, factor in factors.items()} | {
            f"{self.key}.alpha": scalar(alpha, dtype)}

    def change_norm(self) -> float:
        """The norm of a Kronecker product is the product of the norms."""
        if isinstance(self.large, tuple):
            left, right = (factor.float() for factor in self.large)
            squared = ((left.T @ left) * (right @ right.T)).sum().clamp(min=0)
        else:
            squared = self.large.float().square().sum()
        return float(self.scale * self.small.float().norm() * squared.sqrt())
