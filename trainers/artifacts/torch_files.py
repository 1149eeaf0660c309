"""PyTorch's own files (.pt, .bin) of unknown origin: read without running what is in them, in bounded memory and time.

Since 1.6 (2020) `torch.save` writes a zip archive of uncompressed parts: `…/data.pkl` describes the objects, `…/data/0`,
`…/data/1`, … are the bytes of the tensors. What `torch.load(weights_only=True)` refuses is not run; what it would unpack or
reserve is looked at here before it is asked.
"""
import re
import struct
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .tensor_files import DTYPES

MAXIMUM_DESCRIPTION = 1 << 20
"""Bytes of everything in an archive that is not a tensor; a word's is below 2 KB."""
MAXIMUM_OLD = 4 << 20
"""Bytes of a file in the form before 2020, which has the description and the tensors in one stream."""
MAXIMUM_DIRECTORY = 1 << 20
"""Bytes of an archive's list of parts."""
EXPANDING = (b"bytearray", b"_codecs")
"""Builtins that torch lets a description call, with which a few bytes reserve gigabytes. Files of tensors name neither."""
PLAIN = {b"torch", b"torch._utils", b"torch._tensor", b"collections"}
"""Modules that descriptions of tensors and plain containers name."""
_END = struct.Struct("<4sHHHHIIH")  # of a zip archive: mark, disks, parts, size and place of the list, length of a comment


class Refused(UserError):
    """The file is damaged, or holds more than tensors and plain containers."""


def load_plain(path: Path) -> Any:
    """The content of a file that holds tensors, numbers, strings and plain containers. Tensors are views of the file: copy
    what is kept, and look at nothing but `is_dense` before.

    Raises Refused for a file that is damaged or holds other objects, and UserError for one that is made to do harm.
    """
    archive = _is_archive(path)
    if archive:
        described = _description(path)
    elif path.stat().st_size > MAXIMUM_OLD:
        raise UserError(f"{path.name!r} is larger than {MAXIMUM_OLD >> 20} MB and not in the form that PyTorch has written "
                        "since 2020. Save it anew with a newer PyTorch, or use a .safetensors version of it.")
    else:
        described = path.read_bytes()
    if any(name in described for name in EXPANDING):
        raise _refused(path)
    try:
        # Mapped from the disk, no tensor is read before it is used, and none can reach beyond the file.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception:  # a damaged or refused file raises one of many types, in words for developers
        raise _refused(path) from None


def last_records(path: Path, largest: int) -> Iterator[bytes]:
    """The bytes behind the tensors of an archive that also holds objects, the last first, without making the objects.

    Raises UserError for an archive that is made to do harm, and Refused for any other file and for parts of more than
    `largest` bytes.
    """
    if not _is_archive(path) or PLAIN.issuperset(re.findall(rb"c([\w.]+)\n\w+\n", _description(path))):
        raise _refused(path)
    for part in reversed([part for part in _parts(path) if "data/" in part.filename]):
        if part.file_size > largest:
            raise _refused(path)
        yield _read(path, part)


def is_dense(value: Any, dimensions: Collection[int]) -> bool:
    """Whether a value is an ordinary tensor of numbers, neither complex nor quantized, with one of these numbers of
    dimensions, none of length 0. Nothing but this may be asked of a tensor before.

    It may still be a view that repeats its numbers: look at its shape before anything reads it.
    """
    return (type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and value.device.type == "cpu"
            and not value.is_nested and value.dtype in DTYPES.values() and value.ndim in dimensions and value.numel() > 0)


def _is_archive(path: Path) -> bool:
    """torch's own rule."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as problem:
        raise UserError(f"{path.name!r} cannot be read: {problem.strerror or type(problem).__name__}.") from None


def _parts(path: Path) -> list[zipfile.ZipInfo]:
    """The parts of an archive that is as torch writes it: uncompressed, so that they cannot unpack to more than the file."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            file.seek(max(0, size - _END.size))
            mark, *_, directory, _, comment = _END.unpack(file.read())
        if mark != b"PK\x05\x06" or comment or directory > MAXIMUM_DIRECTORY:
            raise _refused(path)
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError):
        raise _refused(path) from None
    unpacked = sum(part.file_size for part in parts)
    described = sum(part.file_size for part in parts if "/data/" not in part.filename)
    if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 for part in parts):
        raise UserError(f"{path.name!r} is a compressed archive of {size:,} bytes that unpacks to {unpacked:,}. PyTorch "
                        "writes none; it may be made to fill the memory and is not read. Choose another file.")
    if described > MAXIMUM_DESCRIPTION:
        raise _refused(path)
    return parts


def _description(path: Path) -> bytes:
    return b"".join(_read(path, part) for part in _parts(path) if part.filename.endswith("data.pkl"))


def _read(path: Path, part: zipfile.ZipInfo) -> bytes:
    try:
        with zipfile.ZipFile(path) as file:
            return file.read(part)
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError):
        raise _refused(path) from None


def _refused(path: Path) -> Refused:
    return Refused(f"{path.name!r} cannot be read safely: it is damaged, or holds more than tensors and plain containers. "
                   "Use a .safetensors version of it.")
