"""One patch per weight for a whole stack of LoRAs.

The host applies LoRAs one after the other: every one reads and writes every weight. Here the low-rank factors of all LoRAs
of a weight are laid side by side, up [out, r₁ + r₂ + …] and down [r₁ + r₂ + …, in], and one product is added: the same sum.
"""
import comfy.lora
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

MAXIMUM_RANK = 1024
"""Columns joined at once, so that memory does not grow with the number of LoRAs: 1024 × (in + out) values."""


class StackPatch(WeightAdapterBase):
    """What a stack does to one weight: `weights` is a tuple of steps, done in order.

    ("joined", ((up, down, scale), …)): adds Σ scale · up · down.
    ("host", patch, strength): whatever the host's own loader made of the file.
    ("dora", patch, magnitudes [out, 1, …], strength): W ← W + strength · (m · V / ‖V‖ - W) with V = W + the patch's change
    and norms over all but the output axis (Liu et al. 2024, arXiv:2402.09353, eq. 5). The host's own code divides by the
    norm of W instead.

    The host rebuilds a patch as `type(patch)(patch.loaded_keys, weights)` after it has moved the tensors in `weights`.
    """

    name = "stack"
    weights: tuple  # pyright: ignore[reportIncompatibleVariableOverride]: the host's own adapters keep tuples too

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys, self.weights = loaded_keys, weights

    def calculate_shape(self, key: str):
        """The shape after a step that changes it (control LoRAs); None when none does."""
        shapes = [step[1].calculate_shape(key) for step in self.weights if hasattr(step[1], "calculate_shape")]
        return next((shape for shape in reversed(shapes) if shape is not None), None)

    def calculate_weight(self, weight, key, strength, strength_model, offset, function,
                         intermediate_dtype=torch.float32, original_weights=None):
        """Joined factors are only made for targets whose `function` is the identity."""
        for kind, content, *rest in self.weights:
            if kind == "joined":
                add_joined(weight, content, strength)
            elif kind == "host":
                weight = _by_host((rest[0] * strength, content, 1.0, None, function), weight, key, intermediate_dtype,
                                  original_weights)
            else:
                magnitudes, own_strength = rest
                # The change alone, in float32: it is divided by a norm.
                change = _by_host((1.0, content, 1.0, None, function), torch.zeros_like(weight, dtype=torch.float32), key,
                                  torch.float32, original_weights)
                change += weight
                magnitudes = magnitudes.to(change)
                norm = change.flatten(1).norm(dim=1).reshape(magnitudes.shape)
                change *= magnitudes / norm.clamp(min=torch.finfo(torch.float32).tiny)
                weight += (strength * own_strength * (change - weight)).to(weight.dtype)
        return weight


def _by_host(patch: tuple, weight: Tensor, key: str, dtype: torch.dtype, original_weights) -> Tensor:
    """One patch as the host keeps it: (strength, patch, strength of the weight, offset, function)."""
    return comfy.lora.calculate_weight([patch], weight, key, dtype, original_weights)


def add_joined(weight: Tensor, factors: tuple, strength: float = 1.0):
    """weight [out, in, …] += strength · Σ scale · up · down in place; up [out, rank, …], down [rank, in, …]."""
    flat = weight.flatten(1)
    group, ranks = [], 0
    for factor in factors:
        group.append(factor)
        ranks += len(factor[1])
        if ranks >= MAXIMUM_RANK or factor is factors[-1]:
            _add_group(flat, group, strength)
            group, ranks = [], 0
    if flat.data_ptr() != weight.data_ptr():  # a view of a larger weight may have to be copied to become flat
        weight.copy_(flat.reshape(weight.shape))


def _add_group(flat: Tensor, group: list, strength: float):
    # Joined where they lie, so that a device gets two tensors instead of two per LoRA.
    ups = torch.cat([up.flatten(1) for up, _, _ in group], dim=1).to(flat)
    downs = torch.cat([down.flatten(1) for _, down, _ in group]).to(flat)
    scales = [scale * strength for _, down, scale in group for _ in range(len(down))]
    downs *= torch.tensor(scales, dtype=flat.dtype).to(flat.device)[:, None]
    flat.addmm_(ups, downs)
