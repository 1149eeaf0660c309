"""int8 of weights whose input axis was rotated, group by group, so that no number stands out ("ConvRot"; comfy-kitchen's
`int8_utils`). The rotation is a symmetric Hadamard matrix: applied again, it undoes itself."""
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..tensor_files import Entry
from .layout import StoredWeight, dequantized

USUAL_GROUP, LARGEST_POWER = 256, 6
"""Inputs that are rotated together; they are a power of 4."""


def read(stored: StoredWeight, factor: Callable[[], Tensor]) -> Entry:
    """`factor` gives the scales of the rows, float32 [rows or 1, 1]. Raises UserError for groups that the weight has not."""
    weight, group = stored.weight, stored.said("convrot_groupsize", USUAL_GROUP)
    sizes = [4**power for power in range(LARGEST_POWER + 1)]
    if weight.dtype != torch.int8 or len(weight.shape) != 2 or type(group) is not int or group not in sizes[1:] or (
            weight.shape[1] % group):
        raise stored.refused()

    def prepare():
        # Sums of whole numbers are exact in any order; the scales come last. sqrt(group) is a power of two.
        values, scales = weight.tensor(), factor() / group**0.5
        # A large matrix is the Kronecker product of two small ones, of which each turns one axis of a group.
        one, other = (_hadamard(4**power) for power in (sizes.index(group) // 2, (sizes.index(group) + 1) // 2))

        def rows(part: slice) -> Tensor:
            groups = values[part].to(torch.float32).view(-1, len(one), len(other))
            return (one @ (groups @ other)).view(-1, weight.shape[1]).mul_(scales[part] if len(scales) > 1 else scales)
        return rows
    return dequantized(weight, weight.shape, prepare)


@cache
def _hadamard(size: int) -> Tensor:
    """The regular Hadamard matrix of a power of 4, of numbers 1 and -1, float32. It is its own transpose."""
    four, found = torch.ones(4, 4) - 2 * torch.eye(4).flip(0), torch.ones(1, 1)
    while len(found) < size:
        found = torch.kron(found, four)
    return found
