"""LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): the element-wise product of two low-rank matrices."""
from dataclasses import dataclass

import torch
from torch import Tensor

from ...spec import LoraSpec
from ..layer_names.parts import LOHA
from .format import AdapterFormat, Shape, Shapes, Tensors, product, product_shape, scalar, stored


class LohaFormat(AdapterFormat):
    """Those of convolutions may come flat, [out, in · height · width]."""

    title = "LoHa"
    parts = LOHA
    ranked = ("hada_w1_b",)

    def shape(self, shapes: Shapes) -> Shape | None:
        first, second = (product_shape(shapes, f"hada_w{number}", shapes.get(f"hada_t{number}")) for number in (1, 2))
        return first if first == second else None

    def change(self, tensors: Tensors) -> Tensor:
        return self.scale(tensors) * product(tensors, "hada_w1", "hada_t1") * product(tensors, "hada_w2", "hada_t2")

    def arguments(self, spec: LoraSpec) -> dict[str, object]:
        return {"algo": "loha"}


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
