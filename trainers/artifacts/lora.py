"""LoRA files as kohya's trainer writes them: the form that every program loads.

Per layer: `<key>.lora_down.weight` [rank, in, …], `<key>.lora_up.weight` [out, rank, …] and `<key>.alpha` (scalar). The
change of a weight is alpha / rank · up · down; a file without alpha is read as alpha = rank, so alpha is always there.
"""
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import temporary_beside
from .metadata import with_hashes

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoraWeight:
    """The factors of one layer: `down` [rank, in, …] and `up` [out, rank, …]."""

    key: str
    down: Tensor
    up: Tensor
    alpha: float

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            f"{self.key}.lora_down.weight": self.down.to("cpu", dtype).contiguous(),
            f"{self.key}.lora_up.weight": self.up.to("cpu", dtype).contiguous(),
            f"{self.key}.alpha": torch.tensor(self.alpha, dtype=dtype),
        }

    def change_norm(self) -> float:
        """Frobenius norm of alpha / rank · up · down, from the factors' Gram matrices: no [out, in] product is made."""
        down, up = self.down.float().flatten(1), self.up.float().flatten(1)
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            return float("nan")
        squared = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
        return float(self.alpha / len(down) * squared.sqrt())


def save_lora(path: Path, weights: Iterable[LoraWeight], precision: str, metadata: dict[str, str]) -> dict:
    """Write a LoRA file whole or not at all. Returns {"layers", "keys", "bytes", "change_norm"} for the report."""
    dtype, tensors, layers, squared = PRECISIONS[precision], {}, 0, 0.0
    for weight in weights:
        tensors |= weight.tensors(dtype)
        squared += weight.change_norm() ** 2
        layers += 1
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"The trained weight {name} holds values that are not numbers in {precision}. "
                            "Lower the learning rate, or save the file as fp32.")
    with temporary_beside(path) as temporary:
        save_file(tensors, temporary, metadata=with_hashes(tensors, metadata))
        os.replace(temporary, path)
    return {"layers": layers, "keys": len(tensors), "bytes": path.stat().st_size, "change_norm": squared**0.5}
