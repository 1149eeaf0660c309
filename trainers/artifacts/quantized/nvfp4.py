"""Four bits a number, two in a byte, with an fp8 scale for every 16 inputs and one scale for all ("nvfp4")."""
from math import prod

import torch

from ..tensor_files import Entry
from .layout import StoredWeight, block_scales_fit, dequantized, in_rows, is_number

BLOCK = 16
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What four bits stand for: a sign, two bits of exponent, one of fraction (e2m1)."""


def read(stored: StoredWeight) -> Entry:
    """The first of two numbers is in the higher bits of a byte. Raises UserError for shapes that do not belong together."""
    packed, scale, over_all = stored.weight, stored.beside.get("weight_scale"), stored.beside.get("weight_scale_2")
    if scale is None or over_all is None or len(packed.shape) != 2 or packed.dtype != torch.uint8 or (
            2 * packed.shape[1] % BLOCK or not is_number(over_all) or prod(over_all.shape) != 1
            or not block_scales_fit(scale, packed.shape[0], 2 * packed.shape[1] // BLOCK, torch.float8_e4m3fn)):
        raise stored.refused()
    rows, blocks = packed.shape[0], 2 * packed.shape[1] // BLOCK

    def prepare():
        pairs = torch.cartesian_prod(torch.tensor(NUMBERS), torch.tensor(NUMBERS))  # of every byte
        scales = in_rows(scale.tensor().view(torch.float8_e4m3fn), rows, blocks).to(torch.float32)
        scales, values = scales.mul_(over_all.tensor().to(torch.float32).reshape(())), packed.tensor()
        return lambda part: pairs.index_select(0, values[part].flatten().to(torch.int32)).view(-1, blocks, BLOCK).mul_(
            scales[part, :, None]).flatten(1)
    return dequantized(packed, (rows, blocks * BLOCK), prepare)
