"""What a model or LoRA weighs: the numbers of a file, whatever precision and scales it keeps them in."""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .quantized import without_scales
from .tensor_files import Entry, read_entries, require_finite
from .tensor_header import read_header


@dataclass(frozen=True)
class Weights:
    """The tensors of a model or LoRA by name, scales worked in, each read from the disk when it is asked for. `title` is
    what people see."""

    title: str
    entries: Mapping[str, Entry]

    @classmethod
    def of_file(cls, path: Path) -> "Weights":
        return cls(path.name, without_scales(read_entries(path), read_header(path)[1], path.name))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    def weight(self, name: str) -> Tensor:
        """The tensor in float32. UserError where a value is not finite."""
        return require_finite(self.entries[name].tensor(torch.float32).to(torch.float32), name, self.title)
