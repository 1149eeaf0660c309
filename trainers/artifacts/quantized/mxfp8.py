"""fp8 with a power of two for every 32 inputs ("mxfp8": OCP Microscaling Formats 1.0, in cuBLAS' order)."""
import torch
from torch import Tensor

from ..fp8 import to_float32
from ..tensor_files import Entry
from .layout import StoredWeight, block_scales_fit, dequantized, in_rows

BLOCK = 32


def read(stored: StoredWeight) -> Entry:
    """Raises UserError for shapes that do not belong together."""
    weight, scale = stored.weight, stored.beside.get("weight_scale")
    if scale is None or len(weight.shape) != 2 or weight.dtype != torch.float8_e4m3fn or weight.shape[1] % BLOCK or (
            not block_scales_fit(scale, weight.shape[0], weight.shape[1] // BLOCK, torch.float8_e8m0fnu)):
        raise stored.refused()
    rows, blocks = weight.shape[0], weight.shape[1] // BLOCK

    def powers() -> Tensor:
        """Float32 [rows, blocks]. Scales are the exponents of float32; as ComfyUI has it, the smallest is 0."""
        exponents = in_rows(scale.tensor().view(torch.uint8), rows, blocks)
        return (exponents.to(torch.int32) << 23).view(torch.float32)

    def prepare():
        values, scales = weight.tensor(), powers()
        return lambda part: to_float32(values[part]).view(-1, blocks, BLOCK).mul_(scales[part, :, None]).flatten(1)
    return dequantized(weight, weight.shape, prepare, lambda: powers().repeat_interleave(BLOCK, dim=1))
