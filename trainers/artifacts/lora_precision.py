"""Factors of a LoRA as a file stores them, in eight bits too.

Loaders know no scales of eight-bit factors, but all of them multiply by alpha / rank: the scales go into alpha. So a file
in fp8 or int8 acts in every program that reads its element type, at a quarter of fp32's size.
"""
import math

import torch
from torch import Tensor

from .adapters.format import stored
from .adapters.lora import LoraWeight
from .lora import PRECISIONS

FP8_LARGEST = 16.0
"""Where a factor's largest value is put: float8_e4m3fn is exact to 1/16 from there down to 2⁻⁶, and products stay small."""
INT8_LARGEST = 127
PRODUCT_LIMIT = 30_000.0
"""Largest value of up · down, whose half-precision sum (at most 65504) some loaders form before they multiply by alpha."""


def low_rank_tensors(weight: LoraWeight, precision: str) -> dict[str, Tensor]:
    """The layer's part of a file in "fp32", "bf16", "fp16", "fp8" (float8_e4m3fn) or "int8"."""
    if precision in PRECISIONS:
        return weight.tensors(PRECISIONS[precision])
    down, up = weight.down.float(), weight.up.float()
    if precision == "fp8":
        (down, first), (up, second) = (_to_fp8(each) for each in (down, up))
    else:
        down, first = _to_int8(down, INT8_LARGEST)
        largest = float((up.flatten(1) @ down.float().flatten(1)).abs().max()) * INT8_LARGEST / _largest(up)
        up, second = _to_int8(up, min(INT8_LARGEST, max(1, math.floor(INT8_LARGEST * PRODUCT_LIMIT / max(largest, 1.0)))))
    alpha = torch.tensor(weight.alpha * first * second, dtype=torch.float32)
    return {f"{weight.key}.lora_down.weight": down.contiguous(), f"{weight.key}.lora_up.weight": up.contiguous(),
            f"{weight.key}.alpha": alpha}


def other_tensors(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Tensors of LoHa, LoKr and DoRA layers. Alphas and DoRA's lengths stay as they are."""
    return {name: tensor if name.endswith((".alpha", ".dora_scale")) else stored(tensor, PRECISIONS[precision])
            for name, tensor in tensors.items()}


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) or 1.0


def _to_fp8(tensor: Tensor) -> tuple[Tensor, float]:
    """(values, scale). The scale is a power of two: it costs no precision."""
    scale = 2.0 ** math.ceil(math.log2(_largest(tensor) / FP8_LARGEST))
    return (tensor / scale).to(torch.float8_e4m3fn).cpu(), scale


def _to_int8(tensor: Tensor, largest: int) -> tuple[Tensor, float]:
    scale = _largest(tensor) / largest
    return (tensor / scale).round().clamp(-largest, largest).to(torch.int8).cpu(), scale
