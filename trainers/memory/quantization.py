"""Weights in 8 bits, with a scale for every output channel."""
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError

FP8 = torch.float8_e4m3fn
LIMITS = {"int8": 127.0, "fp8": torch.finfo(FP8).max}
PACKED = {"same": None, "int8": torch.int8, "fp8": torch.uint8}
"""Type in memory of what is stored so."""
Precision = Literal["fp8", "int8"]


def require_support(precision: Precision, device: torch.device):
    """Raise UserError when the device cannot convert the numbers."""
    try:
        packed, scale = pack(torch.ones(2, 2, device=device), precision)
        unpack(packed, scale, torch.float32)
    except (RuntimeError, TypeError) as problem:
        raise UserError(f"This device ({device.type}) cannot store weights in {precision}. Set frozen_precision to "
                        f"{'int8 or ' if precision == 'fp8' else ''}same.") from problem


def pack(weight: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """(bytes in the shape of `weight`, float32 scale of every output channel). fp8 is e4m3 (Micikevicius et al. 2022,
    arXiv:2209.05433); its bytes are kept as uint8, which every device, cast and process group leaves alone.

    The scale of fp8 is a power of two: it costs no digit of a floating-point number, and weights that come from a file in
    fp8 are packed exactly.
    """
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / LIMITS[precision]
    if precision == "int8":
        return (weight / scale).round().to(torch.int8), scale
    fraction, exponent = torch.frexp(scale)  # 0.5 ≤ fraction < 1
    scale = torch.ldexp(torch.ones_like(scale), exponent - (fraction == 0.5).to(exponent.dtype))
    return (weight / scale).to(FP8).view(torch.uint8), scale


def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    values = packed if packed.dtype == torch.int8 else packed.view(FP8)
    # Packed values are exact in every dtype, but scales are not, and may be too small for fp16: multiplied as float32.
    return values.to(dtype).mul_(scale)
