"""Whether two tensors differ by the rounding of a number format alone, whatever format their files have."""
from collections.abc import Sequence

import torch
from torch import Tensor

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8 (e4m3)": torch.float8_e4m3fn, "fp8 (e5m2)": torch.float8_e5m2}
STEPS = 0.5 + 1 / 16
"""Rounding moves a number by half a step of the format at most. A sixteenth more is left for a second rounding, to a format
with three more binary digits, before or after (the fp16 file of a base whose bf16 file was trained)."""
NEAR_ZERO = 2.0**-24
"""The smallest number of fp16, by which a second rounding moves numbers next to zero."""
SAMPLE = 1024


def rounding_between(one: Tensor, other: Tensor, dtypes: Sequence[torch.dtype]) -> str | None:
    """The format to which one of two float32 tensors was rounded, and is otherwise the other; None when they differ by more,
    or not at all. `dtypes` are those of their files; only coarser formats than the finer of these come in question.

    A layer that was trained in such a format has values that moved by whole steps, and does not pass.
    """
    finest = min((torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point), default=0.0)
    for name, dtype in FORMATS.items():
        if torch.finfo(dtype).eps <= finest:
            continue
        for rounded, whole in ((one, other), (other, one)):
            if (_is_of(rounded.flatten()[:SAMPLE], dtype) and _is_of(rounded, dtype) and not rounded.equal(whole)
                    and is_rounded(rounded, whole, dtype)):
                return name
    return None


def is_rounded(rounded: Tensor, whole: Tensor, dtype: torch.dtype) -> bool:
    """Whether values of a format are no further from others than rounding to it takes them."""
    return bool(((rounded - whole).abs() <= STEPS * _step(whole, dtype) + NEAR_ZERO).all())


def _is_of(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether every value is one of the format's."""
    return bool((tensor.to(dtype).to(torch.float32) == tensor).all())


def _step(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of a format's values at those of a tensor: eps · 2^⌊log₂|x|⌋, and below the normal numbers that of the
    smallest ones."""
    facts = torch.finfo(dtype)
    _, exponent = torch.frexp(tensor.abs().clamp_min(facts.smallest_normal))  # |x| = m · 2^e, m from 0.5 to 1
    return torch.ldexp(torch.full_like(tensor, facts.eps), exponent - 1)
