"""LoRA files as kohya's trainer writes them, the form that every program loads; for families whose layers are written under
ComfyUI's own names (`diffusion_model.…`), as ai-toolkit writes those.

Per layer: `<key>.lora_down.weight` [rank, in, …], `<key>.lora_up.weight` [out, rank, …] and `<key>.alpha` (scalar). The
change of a weight is alpha / rank · up · down; a file without alpha is read as alpha = rank, so kohya's always have one.
"""
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_tensors
from ..reports import Saved, SavedFile
from .adapters.format import AdapterWeight
from .layer_names.parts import ALPHA, DOWN
from .metadata import with_hashes
from .tensor_files import entry_of, write_entries

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NATIVE = "diffusion_model."


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Write a file of these tensors whole or not at all, without a second copy of them; returns its size in bytes."""
    return write_entries(path, [entry_of(name, [tensor]) for name, tensor in tensors.items()], {"format": "pt", **metadata})


def save_lora(path: Path, weights: Iterable[AdapterWeight], precision: str, metadata: Mapping[str, str]) -> Saved:
    """Write a file whole or not at all. Raises UserError for values that do not fit the precision."""
    dtype, tensors, layers, squared = PRECISIONS[precision], {}, 0, 0.0
    for weight in weights:
        tensors |= _as_in_peft(weight, dtype) if weight.key.startswith(NATIVE) else weight.tensors(dtype)
        squared += weight.change_norm() ** 2
        layers += 1
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"The trained weight {name} holds values that are not numbers in {precision}. "
                            "Lower the learning rate, or save the file as fp32.")
    write_tensors(path, tensors, with_hashes(tensors, metadata))
    return Saved(files=(SavedFile.at("lora", path),), layers=layers, keys=len(tensors), change_norm=squared**0.5)


def _as_in_peft(weight: AdapterWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Factors by peft's names. An alpha stands there only where it is not the rank, which is what a file without it means:
    diffusers refuses one under these names."""
    found = weight.tensors(dtype)
    down, alpha = f"{weight.key}.{DOWN}", f"{weight.key}.{ALPHA}"
    if down in found and float(found[alpha]) == len(found[down]):
        del found[alpha]
    return {name.replace(".lora_down.", ".lora_A.").replace(".lora_up.", ".lora_B."): each for name, each in found.items()}
