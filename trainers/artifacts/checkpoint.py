"""Checkpoints: whole models in the original single-file layout, which every program loads, or in shards.

Shards and their index carry the names that Hugging Face's libraries give them: `name-00001-of-00003.safetensors` and
`name.safetensors.index.json`.
"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_json
from ..reports import FileKind, SavedFile
from .tensor_files import Entry, write_entries

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(entry: Entry, dtype: torch.dtype) -> Entry:
    """The entry as `dtype`; whole numbers stay what they are. Its values are checked while they are read: UserError where
    one is not finite."""
    if not entry.dtype.is_floating_point:
        return entry

    def pieces():
        for piece in entry.pieces():
            converted = piece.to(dtype)
            if not torch.isfinite(converted).all():
                raise UserError(f"The weight {entry.name} holds values that are not numbers in {_name(dtype)}. Lower the "
                                "learning rate, or save the file as bf16 or fp32.")
            yield converted
    return replace(entry, dtype=dtype, pieces=pieces)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, each in PRECISIONS.items() if each == dtype)


def save_checkpoint(folder: Path, name: str, entries: Sequence[Entry], metadata: Mapping[str, str],
                    shard_size: float = 0.0, kind: FileKind = "checkpoint") -> tuple[SavedFile, ...]:
    """Write a checkpoint, or a denoiser alone (`kind`), one tensor in memory at a time. `shard_size` is in GB; 0 writes one
    file, and so does a size that the whole of it fits in.

    The files of a sharded one are of the kind "shard", because only all of them together can be loaded.
    """
    shards = _shards(entries, int(shard_size * 1e9)) if shard_size else [list(entries)]
    files, places, several = [], {}, len(shards) > 1
    kind = "shard" if several else kind
    for number, shard in enumerate(shards, start=1):
        stem = f"{name}-{number:05}-of-{len(shards):05}" if several else name
        write_entries(folder / f"{stem}.safetensors", shard, metadata)
        files.append(SavedFile.at(kind, folder / f"{stem}.safetensors"))
        places |= {entry.name: f"{stem}.safetensors" for entry in shard}
    if several:
        index = folder / f"{name}.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": sum(entry.bytes for entry in entries)}, "weight_map": places})
        files.append(SavedFile.at(kind, index))
    return tuple(files)


def _shards(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """Entries in their order, in shards of at most `limit` bytes; a larger tensor has a shard of its own."""
    shards, room = [], 0
    for entry in entries:
        if entry.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(entry)
        room -= entry.bytes
    return shards


def change(pairs: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[float, float]:
    """How far weights are from those they started as: (Frobenius norm of the difference, its fraction of theirs).

    `pairs` are (trained, base). Both are compared as `dtype`, the file's: what rounding takes away is no change, and
    rounding alone is none either.
    """
    moved = length = 0.0
    for trained, base in pairs:
        base = base.to(dtype).to(torch.float32, copy=True)
        length += float(torch.linalg.vector_norm(base)) ** 2
        moved += float(torch.linalg.vector_norm(base.sub_(trained.to("cpu", dtype)))) ** 2
    return moved**0.5, (moved / length) ** 0.5 if length else 0.0
