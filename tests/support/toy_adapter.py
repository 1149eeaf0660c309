"""A kind of adapter in one file: W + scale · left ⊗ right, the outer product of two vectors, by peft's LoRA of rank 1."""
from dataclasses import dataclass
from typing import Any

import torch
from finetune.trainers.artifacts import adapters as formats
from finetune.trainers.artifacts.adapters.format import AdapterFormat, AdapterWeight, Shape, Shapes, Tensors, scalar, stored
from finetune.trainers.methods import adapters as trained
from finetune.trainers.methods.adapters.kind import ADAPTER, Sizes
from finetune.trainers.spec import LoraSpec
from finetune.trainers.spec.adapters import ADAPTERS, Adapter
from peft import LoraConfig, PeftConfig
from torch import Tensor

NAME, LEFT, RIGHT = "outer", "outer_left", "outer_right"


@dataclass(frozen=True)
class OuterWeight:
    """`left` [out] and `right` [in, …]."""

    key: str
    left: Tensor
    right: Tensor
    scale: float

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {f"{self.key}.{LEFT}": stored(self.left, dtype), f"{self.key}.{RIGHT}": stored(self.right, dtype),
                f"{self.key}.alpha": scalar(self.scale, dtype)}

    def change_norm(self) -> float:
        return self.scale * float(self.left.norm() * self.right.norm())


class OuterFormat(AdapterFormat):
    title, parts = "Outer", (LEFT, RIGHT)

    def rank(self, shapes: Shapes) -> int:
        return 1

    def shape(self, shapes: Shapes) -> Shape:
        return (*shapes[LEFT], *shapes[RIGHT])

    def change(self, tensors: Tensors) -> Tensor:
        return self.scale(tensors) * torch.tensordot(tensors[LEFT], tensors[RIGHT], dims=0)

    def arguments(self, spec: Any) -> dict[str, object]:
        return {"algo": NAME}


class Outer:
    def config(self, spec: LoraSpec, sizes: Sizes) -> PeftConfig:
        return LoraConfig(r=1, lora_alpha=1, target_modules=sizes["target_modules"])

    def prepare(self, spec: LoraSpec, layer: Any):
        pass

    def weight(self, key: str, layer: Any) -> AdapterWeight:
        up, down = layer.lora_B[ADAPTER].weight.detach(), layer.lora_A[ADAPTER].weight.detach()
        return OuterWeight(key, up.flatten(), down[0], layer.scaling[ADAPTER])


def register():
    ADAPTERS[NAME] = Adapter("Outer")
    formats.register(NAME, OuterFormat())
    trained.KINDS[NAME] = Outer()


def forget():
    for registry in (ADAPTERS, formats.FORMATS, trained.KINDS):
        registry.pop(NAME)
