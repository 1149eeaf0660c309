"""Safetensors files read and written one tensor at a time, so that a model of gigabytes is never held twice.

Every file of other people comes in through here; what its header claims is checked in `tensor_header`.
"""
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UserError
from ..files import temporary_beside
from .fp8 import EXPONENTS, is_finite, to_float32
from .tensor_header import data_start, read_header

DTYPES = {
    "U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "U32": torch.uint32,
    "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16, "U16": torch.uint16, "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}
"""In the order in which the format's library lays tensors out: the widest first, which keeps all of them aligned."""
AT_ONCE = 1 << 20
"""Numbers that are computed at once: in float32 they fit into a processor's cache, and a layer is never held twice."""
if hasattr(torch, "float8_e8m0fnu"):  # newer than the oldest torch
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def require_finite(tensor: Tensor, name: str, title: str) -> Tensor:
    """The tensor itself, of any dtype. Raises UserError naming it and its file when a value is infinite or no number."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return tensor
    if not _is_finite(tensor.detach()):
        raise UserError(f"{name} holds values that are not numbers in {title!r}. The file is damaged, or its training "
                        "broke; choose another.")
    return tensor


def _is_finite(values: Tensor) -> bool:
    if values.dtype in EXPONENTS:
        return is_finite(values)
    values = values if values.element_size() > 1 else values.to(torch.float32)
    # The extremes tell it without a mask of the tensor's size: whatever is compared with NaN is NaN.
    return all(isfinite(float(extreme)) for extreme in values.aminmax())


def require_room(path: Path, free: int):
    """Raise UserError for a file that is larger than so many free bytes, before all of it is read at once."""
    size = path.stat().st_size
    if size > free:
        raise UserError(f"{path.name!r} has {size / 1e9:.1f} GB, and only {free / 1e9:.1f} GB of memory are free. Close "
                        "other programs, or choose a smaller file.")


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its pieces, along the first axis, are read when their turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Tensor]]
    stored: torch.dtype | None = None
    """Type in the file of a weight that is multiplied by its scale while it is read."""
    scale: Callable[[], Tensor] | None = None
    """That scale, float32, as it multiplies the weight."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def eight_bit(self) -> bool:
        """Rounded to one byte a number in the file."""
        return self.dtype.is_floating_point and (self.stored or self.dtype).itemsize == 1

    def tensor(self, dtype: torch.dtype | None = None) -> Tensor:
        """Whole. Numbers that are not whole ones are converted to `dtype`, a piece after the other, so that they are never
        held twice."""
        whole, done = torch.empty(0), 0
        for piece in self.pieces():
            wanted = dtype if dtype is not None and piece.is_floating_point() else piece.dtype
            if piece.shape == self.shape and (piece.dtype not in EXPONENTS or wanted == piece.dtype or not self.shape):
                return piece.to(wanted)
            whole = whole if done else torch.empty(self.shape, dtype=wanted, device=piece.device)
            _copy(piece, whole[done:done + len(piece)])
            done += len(piece)
        return whole


def _copy(values: Tensor, target: Tensor):
    """fp8 by some rows at a time, which stay in a processor's cache on their way."""
    if values.dtype not in EXPONENTS or target.dtype == values.dtype:
        target.copy_(values)
        return
    rows = max(1, AT_ONCE // max(1, prod(values.shape[1:])))
    for part, place in zip(values.split(rows), target.split(rows), strict=True):
        place.copy_(to_float32(part))


def finite(entry: Entry, title: str) -> Entry:
    """The entry with `require_finite` asked of its pieces while they are read."""
    return replace(entry, pieces=lambda: (require_finite(piece, entry.name, title) for piece in entry.pieces()))


def entry_of(name: str, pieces: Sequence[Tensor]) -> Entry:
    """An entry over tensors that are in memory anyway."""
    first = pieces[0]
    shape = tuple(first.shape) if len(pieces) == 1 else (sum(len(piece) for piece in pieces), *first.shape[1:])
    return Entry(name, first.dtype, shape, lambda: pieces)


def read_entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a file by name; each is read from the disk when it is asked for, and kept by nobody here."""
    header, _ = read_header(path)
    start = data_start(path)
    return {name: _entry(path, start, name, facts) for name, facts in header.items()}


def finite_entries(path: Path) -> dict[str, Entry]:
    """`read_entries`, with `require_finite` for everything that is read."""
    def checked(entry: Entry) -> Entry:
        return replace(entry, pieces=lambda: [require_finite(piece, entry.name, path.name) for piece in entry.pieces()])
    return {name: checked(entry) for name, entry in read_entries(path).items()}


def mapped_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(every tensor of a file by name, its metadata). The tensors are mapped from the disk: memory that the system may drop
    and read again. Raises UserError as `finite_entries` does."""
    header, metadata = read_header(path)
    for name, facts in header.items():
        _dtype(path, name, facts)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: require_finite(file.get_tensor(name), name, path.name) for name in header}, metadata
    except SafetensorError:  # the library refuses metadata of odd shapes, which say nothing of the tensors
        return {name: entry.tensor() for name, entry in finite_entries(path).items()}, metadata
    except OSError as problem:
        raise UserError(f"{path.name!r} cannot be read any more: {problem.strerror}.") from None


def _dtype(path: Path, name: str, facts: dict) -> torch.dtype:
    if facts["dtype"] not in DTYPES:
        raise UserError(f"{path.name!r} holds {name} as {facts['dtype']}, which is not read. Choose another file.")
    return DTYPES[facts["dtype"]]


def _entry(path: Path, start: int, name: str, facts: dict) -> Entry:
    dtype, shape, (begin, end) = _dtype(path, name, facts), tuple(facts["shape"]), facts["data_offsets"]

    def pieces():
        # The header was compared with the size of the file. Files are also read while models are made on the meta device.
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        try:
            with open(path, "rb") as file:
                file.seek(start + begin)
                read = file.readinto(_memory(tensor))
        except OSError as problem:
            raise UserError(f"{path.name!r} cannot be read any more: {problem.strerror}.") from None
        if read != end - begin:
            raise UserError(f"{path.name!r} ends before {name} does: it is not whole. Copy or download it again.")
        return [tensor]
    return Entry(name, dtype, shape, pieces)


def write_entries(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> int:
    """Write a file whole or not at all; returns its size in bytes. A piece is converted to its entry's dtype.

    The metadata gets the SHA-256 of the tensors' bytes. It stands in front of them: the header is written twice.
    """
    ordered = sorted(entries, key=lambda entry: (list(DTYPES.values()).index(entry.dtype), entry.name))
    digest = hashlib.sha256()
    with temporary_beside(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(header_bytes(ordered, metadata, "0" * 64))
            for entry in ordered:
                for piece in entry.pieces():
                    data = _memory(piece.detach().to("cpu", entry.dtype).contiguous())
                    digest.update(data)
                    file.write(data)
            size = file.tell()
            file.seek(0)
            file.write(header_bytes(ordered, metadata, digest.hexdigest()))
        os.replace(temporary, path)
    return size


def header_bytes(entries: Sequence[Entry], metadata: Mapping[str, str], digest: str) -> bytes:
    content: dict = {"__metadata__": {**metadata, "sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}}
    place = 0
    for entry in entries:
        content[entry.name] = {
            "dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [place, place + entry.bytes]}
        place += entry.bytes
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format's library begins tensors at multiples of eight
    return struct.pack("<Q", len(text)) + text


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
