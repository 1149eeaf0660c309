"""fp8 and int8 with one scale for a weight or for each of its rows; int8 may be rotated too."""
from math import prod

import torch
from torch import Tensor

from ..fp8 import to_float32
from ..tensor_files import Entry
from . import rotated
from .layout import StoredWeight, dequantized, is_number


def read(stored: StoredWeight) -> Entry:
    """weight = stored · scale. What has no scale is as it stands. Raises UserError for other shapes of scales."""
    weight, scale = stored.weight, stored.beside.get("weight_scale")
    if scale is None and weight.dtype.is_floating_point:
        return weight
    if scale is None:
        raise stored.refused()
    rows, numbers = weight.shape[:1], prod(scale.shape)
    per_row = scale.shape[:1] == rows and numbers == prod(rows)
    # Bytes without a sign are several values packed together.
    is_value = weight.dtype.is_floating_point or weight.dtype == torch.int8
    if not weight.shape or not is_value or not is_number(scale) or not (numbers == 1 or per_row):
        raise stored.refused()

    def factor() -> Tensor:
        return scale.tensor().to(torch.float32).reshape(-1, *[1] * (len(weight.shape) - 1))
    if stored.said("convrot"):
        return rotated.read(stored, factor)

    def prepare():
        values, scales = weight.tensor(), factor()
        return lambda part: to_float32(values[part]).mul_(scales[part] if len(scales) > 1 else scales)
    return dequantized(weight, weight.shape, prepare, factor)
