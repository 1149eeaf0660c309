"""int8 of weights whose input axis was rotated, group by group, so that no number stands out ("ConvRot"; comfy-kitchen's
`int8_utils`). The rotation is a symmetric Hadamard matrix: applied again, it undoes itself."""
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..tensor_files import Entry
from .layout import StoredWeight, dequantized

USUAL_GROUP, LARGEST_GROUP = 256, 4096
"""Inputs that are rotated together."""


def read(stored: StoredWeight, factor: Callable[[], Tensor]) -> Entry:
    """`factor` gives the scales of the rows, float32 [rows or 1, 1]. Raises UserError for groups that the weight has not."""
    weight, group = stored.weight, stored.said("convrot_groupsize", USUAL_GROUP)
    sizes = [4**power for power in range(1, 12) if 4**power <= LARGEST_GROUP]
    if weight.dtype != torch.int8 or len(weight.shape) != 2 or type(group) is not int or group not in sizes or (
            weight.shape[1] % group):
        raise stored.refused()

    def prepare():
        # Sums of whole numbers are exact in any order; the scales come last. sqrt(group) is a power of two.
        values, scales, signs = weight.tensor(), factor() / group**0.5, _hadamard(group)
        return lambda part: (values[part].to(torch.float32).view(-1, group) @ signs).view(-1, weight.shape[1]).mul_(
            scales[part] if len(scales) > 1 else scales)
    return dequantized(weight, weight.shape, prepare)


@cache
def _hadamard(size: int) -> Tensor:
    """The regular Hadamard matrix of a power of 4, of numbers 1 and -1, float32."""
    four = torch.ones(4, 4) - 2 * torch.eye(4).flip(0)
    found = four
    while len(found) < size:
        found = torch.kron(found, four)
    return found
