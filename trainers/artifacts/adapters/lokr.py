"""LoKr (Yeh et al. 2023, arXiv:2309.14859): a Kronecker product."""
from dataclasses import dataclass

import torch
from torch import Tensor

from ...spec import LoraSpec
from ..layer_names.parts import ALPHA, LOKR
from .format import AdapterFormat, Shape, Shapes, Tensors, product, product_shape, scalar, stored


class LokrFormat(AdapterFormat):
    """Those of convolutions may come flat. Alpha counts only where a factor is itself a product: LyCORIS and ComfyUI
    agree."""

    title = "LoKr"
    parts = LOKR
    ranked = ("lokr_w2_b", "lokr_w1_b")

    def shape(self, shapes: Shapes) -> Shape | None:
        small, large = (product_shape(shapes, f"lokr_w{number}", shapes.get("lokr_t2") if number == 2 else None)
                        for number in (1, 2))
        return (small[0] * large[0], small[1] * large[1], *large[2:]) if small and large and len(small) == 2 else None

    def change(self, tensors: Tensors) -> Tensor:
        small, large = product(tensors, "lokr_w1"), product(tensors, "lokr_w2", "lokr_t2")
        return self.scale(tensors) * torch.kron(small.reshape(*small.shape, *[1] * (large.ndim - 2)), large)

    def norm(self, tensors: Tensors) -> float:
        """‖A ⊗ B‖ = ‖A‖ · ‖B‖."""
        if "lokr_t2" in tensors:
            return super().norm(tensors)
        factors = {part: tensor.float() for part, tensor in tensors.items() if part != ALPHA}
        small, large = (float(product(factors, f"lokr_w{number}").norm()) for number in (1, 2))
        return small * large * self.scale(tensors)

    def rescaled(self, tensors: Tensors, scale: float) -> dict[str, Tensor]:
        """Where alpha has no meaning (a full LoKr), in a factor."""
        found = super().rescaled(tensors, scale)
        return found if ALPHA in found or "lokr_w1" not in found else {**found, "lokr_w1": tensors["lokr_w1"] * scale}

    def arguments(self, spec: LoraSpec) -> dict[str, object]:
        return {"algo": "lokr", "factor": spec.kronecker_factor}


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
