"""LoRA files as kohya's trainer writes them: the form that every program loads.

Per layer: `<key>.lora_down.weight` [rank, in, …], `<key>.lora_up.weight` [out, rank, …] and `<key>.alpha` (scalar). The
change of a weight is alpha / rank · up · down; a file without alpha is read as alpha = rank, so alpha is always there.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_tensors
from .metadata import with_hashes
from .tensor_files import entry_of, write_entries

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class AdapterWeight(Protocol):
    """What a file stores for one layer: LoraWeight, or one of its relatives in adapters.py."""

    key: str

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The layer's part of a file, on the CPU."""

    def change_norm(self) -> float:
        """Frobenius norm of the change of the layer's weight; not a finite number if a factor is not finite."""


@dataclass(frozen=True)
class LoraWeight:
    """The factors of one layer: `down` [rank, in, …] and `up` [out, rank, …]."""

    key: str
    down: Tensor
    up: Tensor
    alpha: float

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            f"{self.key}.lora_down.weight": stored(self.down, dtype),
            f"{self.key}.lora_up.weight": stored(self.up, dtype),
            f"{self.key}.alpha": scalar(self.alpha, dtype),
        }

    def change_norm(self) -> float:
        """Frobenius norm of alpha / rank · up · down, from the factors' Gram matrices: no [out, in] product is made."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            return float("nan")
        squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        return float(self.alpha / len(down) * squared.sqrt())


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()


def scalar(value: float, dtype: torch.dtype) -> Tensor:
    """In `dtype` if that is exact, else in float32: rounding an alpha would weaken or strengthen the layer."""
    rounded = torch.tensor(value, dtype=dtype)
    return rounded if rounded.item() == value else torch.tensor(value, dtype=torch.float32)


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write a file of these tensors whole or not at all, without a second copy of them; returns its size in bytes."""
    return write_entries(path, [entry_of(name, [tensor]) for name, tensor in tensors.items()], {"format": "pt", **metadata})


def save_lora(path: Path, weights: Iterable[AdapterWeight], precision: str, metadata: dict[str, str]) -> dict:
    """Write a file whole or not at all. Returns {"layers", "keys", "bytes", "change_norm"} for the report. Raises UserError
    for values that do not fit the precision."""
    dtype, tensors, layers, squared = PRECISIONS[precision], {}, 0, 0.0
    for weight in weights:
        tensors |= weight.tensors(dtype)
        squared += weight.change_norm() ** 2
        layers += 1
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"The trained weight {name} holds values that are not numbers in {precision}. "
                            "Lower the learning rate, or save the file as fp32.")
    write_tensors(path, tensors, with_hashes(tensors, metadata))
    return {"layers": layers, "keys": len(tensors), "bytes": path.stat().st_size, "change_norm": squared**0.5}
