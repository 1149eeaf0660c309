"""The header of a safetensors file, checked before anything believes it: nobody knows who wrote the file.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of the header, the header as JSON
(names → dtype, shape, place), then the tensors' bytes, without holes and without overlaps, up to the end of the file.
What is checked here is what its own library checks, and that the sizes are those of a model; so whoever reads on may take
every shape and place for true, and reserve no more memory than the file has bytes.
"""
import json
import re
import stat
import struct
from math import prod
from pathlib import Path
from typing import TypeGuard

from ..errors import UserError

MAXIMUM_HEADER = 100_000_000
"""Bytes; the limit of the format itself."""
MAXIMUM_PIECES = 4_000_000
"""Commas and opening brackets of a header: they bound the memory that its JSON takes. The largest models have 100 000."""
MAXIMUM_TENSORS, MAXIMUM_DIMENSIONS, MAXIMUM_NAME = 200_000, 8, 500
MAXIMUM_EMPTY = 1 << 16
"""Length of an axis beside another one of length 0, where no byte of the file stands behind it."""
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}
"""Size of a value of every dtype of the format. Which of them are read is the matter of `tensor_files`."""
GGUF = b"GGUF"
"""How files of llama.cpp's format begin, which some have under other endings too."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class _Damaged(Exception):
    """Why the header cannot be true, in words that follow "because"."""


class _Object(dict):
    """A JSON object that remembers whether a name stood in it twice."""

    def __init__(self, pairs: list):
        super().__init__(pairs)
        self.twice = len(self) < len(pairs)


def read_header(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """(tensors, metadata) of a safetensors file: names → {"dtype", "shape", "data_offsets"}, lists of whole numbers.

    Metadata that are no strings are left out. Raises UserError, and nothing else, for any file that is not whole and sound.
    """
    try:
        return _read(path)
    except OSError as problem:
        raise UserError(f"{path.name!r} cannot be read: {problem.strerror or type(problem).__name__}.") from None
    except _Damaged as problem:
        raise UserError(f"{path.name!r} is not a safetensors file, or is damaged: {problem}. Choose another file, or "
                        "download it again.") from None


def gguf_refusal(name: str) -> UserError:
    return UserError(f"{name!r} is a GGUF file, whose blocks of weights are not read here. Take the bf16, fp16, fp8 or int8 "
                     ".safetensors of the same model.")


def data_start(path: Path) -> int:
    """Where the tensors' bytes begin, as the first eight bytes of a file say."""
    with open(path, "rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _read(path: Path) -> tuple[dict[str, dict], dict[str, str]]:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise _Damaged("it is no file")
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(GGUF):
            raise gguf_refusal(path.name)
        if len(start) < 8:
            raise _Damaged("it is shorter than the shortest header")
        length = struct.unpack("<Q", start)[0]
        if length > min(MAXIMUM_HEADER, facts.st_size - 8):
            raise _Damaged("its header is longer than the file or than the format allows")
        header = _parsed(file.read(length))
    metadata = header.pop("__metadata__", None)
    _check_places(path, {name: _size(name, entry) for name, entry in header.items()}, header, facts.st_size - 8 - length)
    strings = metadata.items() if isinstance(metadata, dict) else ()
    return {name: {field: entry[field] for field in ("dtype", "shape", "data_offsets")} for name, entry in header.items()}, {
        _storable(name): _storable(value) for name, value in strings if isinstance(value, str)}


def _storable(text: str) -> str:
    """JSON can hold halves of characters, which no file takes."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _parsed(data: bytes) -> _Object:
    if not data.startswith(b"{"):
        raise _Damaged("its header is no JSON object")
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAXIMUM_PIECES:
        raise _Damaged("its header has more entries than any model")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        raise _Damaged("its header is no JSON") from None
    if header.twice:
        raise _Damaged("its header has two entries of one name")
    if len(header) > MAXIMUM_TENSORS:
        raise _Damaged("its header has more entries than any model")
    if not header.keys() - {"__metadata__"}:
        raise _Damaged("it holds no tensors")
    return header


def _size(name: str, entry: object) -> int:
    """Bytes of a tensor, by its dtype and shape."""
    if len(name) > MAXIMUM_NAME or _UNPRINTABLE.search(name):
        raise _Damaged("the name of a tensor is too long or holds signs that cannot be shown")
    if not isinstance(entry, _Object) or entry.twice:
        raise _Damaged(f"the entry of {name} is not as the format has it")
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _Damaged(f"the dtype of {name} is unknown")
    if not _whole_numbers(shape) or len(shape) > MAXIMUM_DIMENSIONS:
        raise _Damaged(f"the shape of {name} is none")
    if not _whole_numbers(place) or len(place) != 2:
        raise _Damaged(f"the place of {name} is none")
    if 0 in shape and max(shape) > MAXIMUM_EMPTY:
        raise _Damaged(f"the shape of {name} is none")
    bits = prod(shape) * BITS[dtype]
    if bits % 8:
        raise _Damaged(f"the shape of {name} does not fill whole bytes")
    return bits // 8


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    """A list of numbers from 0 to what 64 bits hold; True and False are none."""
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 63 for each in value)


def _check_places(path: Path, sizes: dict[str, int], header: dict[str, dict], room: int):
    """Tensors follow each other from 0 to the end of the file, each as long as its shape says."""
    end = 0
    for (begin, stop), name in sorted((tuple(entry["data_offsets"]), name) for name, entry in header.items()):
        if begin != end or stop - begin != sizes[name]:
            raise _Damaged(f"the place of {name} does not fit its shape or its neighbors")
        end = stop
    if end > room:
        raise UserError(f"{path.name!r} is incomplete: {room} of {end} bytes of its tensors are there. Download it again.")
    if end < room:
        raise _Damaged(f"{room - end} bytes follow behind its last tensor")
