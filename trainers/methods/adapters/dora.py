"""Weight-decomposed low-rank adaptation (Liu et al. 2024, arXiv:2402.09353), with trained lengths on the input axis."""
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ...artifacts.adapters.dora import EPSILON, Columns, DoraWeight, compare_columns, squared_norms
from ...artifacts.adapters.format import AdapterWeight
from ...artifacts.adapters.lora import LoraWeight
from ...spec import LoraSpec
from .kind import ADAPTER
from .lora import Lora


class Lengths(nn.Module):
    """The trained lengths of the input columns of an adapted layer.

    W' = (W + scale · up · down) · lengths / norms is the layer at an input scaled by lengths / norms, so that W' is never
    made. Trained is the difference from the base's lengths: weight decay then pulls towards the base and not to zero.
    """

    base: Tensor

    def __init__(self, layer: LoraLayer, adapter: str):
        super().__init__()
        self.adapter = adapter
        base = squared_norms(layer.weight.detach())
        self.register_buffer("base", base, persistent=False)
        self.change = nn.Parameter(torch.zeros_like(base))

    def columns(self, layer: LoraLayer) -> Columns:
        down, up = (factors[self.adapter].get_parameter("weight") for factors in (layer.lora_A, layer.lora_B))
        return compare_columns(layer.weight, down, up, layer.scaling[self.adapter], self.base)

    def value(self) -> Tensor:
        """Float32 [in]; at first exactly the norms, so that the first step starts from the base."""
        return self.base.sqrt() + EPSILON + self.change

    def scale_input(self, layer: LoraLayer, inputs: tuple) -> tuple:
        """The forward pre-hook. No gradient flows through the norms (section 4.3 of the paper)."""
        values, *others = inputs
        factor = self.value() / self.columns(layer).norms()
        if isinstance(layer.get_base_layer(), nn.Conv2d):
            factor = factor[:, None, None]
        return (values * factor).to(values.dtype), *others


def add_lengths(layer: Any, adapter: str):
    """Make one of peft's LoRA layers a DoRA layer."""
    layer.lengths = Lengths(layer, adapter)
    layer.register_forward_pre_hook(layer.lengths.scale_input)


class Dora(Lora):
    def prepare(self, spec: LoraSpec, layer: Any):
        add_lengths(layer, ADAPTER)

    def weight(self, key: str, layer: Any) -> AdapterWeight:
        shape = (1, -1, 1, 1) if isinstance(layer.get_base_layer(), nn.Conv2d) else (1, -1)
        lora, lengths = super().weight(key, layer), layer.lengths
        assert isinstance(lora, LoraWeight)
        return DoraWeight(lora, lengths.value().detach().view(shape), lengths.columns(layer))
