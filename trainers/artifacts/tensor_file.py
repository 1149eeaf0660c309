"""Safetensors files read one tensor at a time, without mapping them: what was read and dropped takes no memory.

The format is that of the safetensors library: eight bytes with the header's length, a JSON header, the tensors' bytes.
"""
import re
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor

from ..errors import UserError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
SCALES = (".scale_weight", ".weight_scale")
"""Where programs keep the scale of a weight in eight bits, beside `.weight`."""


class TensorFile:
    """Use as a context manager. `header` maps names to {"dtype", "shape", "data_offsets"}; `metadata` is text."""

    def __init__(self, path: Path, header: dict[str, dict], metadata: dict[str, str]):
        self.path, self.header, self.metadata = Path(path), header, metadata

    def __enter__(self) -> "TensorFile":
        self.file = open(self.path, "rb")
        self.start = 8 + int.from_bytes(self.file.read(8), "little")
        return self

    def __exit__(self, *_):
        self.file.close()

    def __contains__(self, name: str) -> bool:
        return name in self.header

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def stored(self, name: str) -> Tensor:
        """The tensor as it is stored."""
        entry = self.header[name]
        if entry["dtype"] not in DTYPES:
            raise UserError(f"{self.path.name!r} stores {name} as {entry['dtype']}, which cannot be read. Convert the file "
                            "to fp16 first.")
        first, last = entry["data_offsets"]
        self.file.seek(self.start + first)
        content = bytearray(self.file.read(last - first))
        if len(content) < last - first:
            raise UserError(f"{self.path.name!r} is incomplete: {name} ends too early. Download it again.")
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.reshape(entry["shape"])

    def weight(self, name: str) -> Tensor:
        """The tensor in float32, with the scale of an eight-bit weight worked in."""
        tensor = self.stored(name)
        eight_bit = tensor.element_size() == 1
        tensor = tensor.to(torch.float32)
        for scale in (re.sub(r"\.weight$", suffix, name) for suffix in SCALES) if eight_bit else ():
            if scale in self and scale != name:
                factor = self.stored(scale).to(torch.float32)
                tensor *= factor if factor.numel() == 1 else factor.reshape(-1, *[1] * (tensor.ndim - 1))
        return tensor
