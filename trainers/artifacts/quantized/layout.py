"""What layouts of quantized weights share: what a file holds of a weight, and its numbers, some rows at a time."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ..tensor_files import AT_ONCE, Entry

Rows = Callable[[slice], Tensor]
"""Rows of a weight → their numbers, float32 [rows, …], in a tensor of their own."""


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight. `beside` are the tensors with its scales, "weight_scale" and "weight_scale_2", `note` is what is
    said of its layer, empty where nothing is. Both are untrusted."""

    title: str
    weight: Entry
    beside: Mapping[str, Entry]
    note: Mapping[str, Any]

    def said(self, field: str, default: Any = None) -> Any:
        """A field of the note, which may stand one level deeper."""
        deeper = self.note.get("params")
        return self.note.get(field, deeper.get(field, default) if isinstance(deeper, dict) else default)

    def refused(self) -> UserError:
        scales = ", ".join(f"{name} {list(scale.shape)} in {_words(scale)}" for name, scale in self.beside.items())
        return refusal(self.title, f"{self.weight.name} {list(self.weight.shape)} in {_words(self.weight)} with "
                                   f"{scales or 'no scales'}, as {str(self.note.get('format', 'scaled weights'))[:40]}")


def refusal(title: str, what: str) -> UserError:
    return UserError(f"{title!r} keeps its weights in a layout that is not read ({what}). Choose the bf16, fp16, fp8 or "
                     "int8 .safetensors of the same model.")


def dequantized(stored: Entry, shape: tuple[int, ...], prepare: Callable[[], Rows],
                scale: Callable[[], Tensor] | None = None) -> Entry:
    """The weight as its numbers in float32. `prepare` reads what the file holds of it, when its turn comes."""
    def pieces():
        rows, step = prepare(), max(1, AT_ONCE // max(1, prod(shape[1:])))
        for start in range(0, max(1, shape[0]), step):
            yield rows(slice(start, start + step))
    return replace(stored, dtype=torch.float32, shape=shape, stored=stored.dtype, scale=scale, pieces=pieces)


def is_number(scale: Entry) -> bool:
    """Whether a scale is kept as a number of its own and not as another layout's block scale."""
    return scale.dtype.is_floating_point and scale.dtype.itemsize > 1


def block_scales_fit(scale: Entry, rows: int, blocks: int, dtype: torch.dtype) -> bool:
    """Whether a tensor can hold the scales of so many blocks in each of so many rows, in the order of `in_rows`. Older files
    keep them as bytes."""
    return scale.dtype in (dtype, torch.uint8) and prod(scale.shape) == _up(rows, 128) * _up(blocks, 4)


def in_rows(scales: Tensor, rows: int, blocks: int) -> Tensor:
    """Block scales [rows, blocks] out of the order in which cuBLAS wants them: tiles of 128 rows and 4 blocks, in each of
    which the row 32·j + i lies in place (i, j) (https://docs.nvidia.com/cuda/cublas, 1D block scaling factors layout)."""
    tiles = scales.reshape(_up(rows, 128) // 128, _up(blocks, 4) // 4, 32, 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(_up(rows, 128), _up(blocks, 4))[:rows, :blocks].contiguous()


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _words(entry: Entry) -> str:
    return str(entry.dtype).removeprefix("torch.")
