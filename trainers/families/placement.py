"""Where the components of a model live and in what form, decided once for a run: loading, encoding and previews ask."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from ..spec import MemorySpec

AT_ONCE = 64
"""Captions that one text encoder encodes before the next one takes its place: moving T5 takes half a second, and what the
first ones have said waits in memory, with T5's 4 MB for each caption."""
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Placement:
    """The denoiser and what trains live on `device`. A VAE, and text encoders whose captions are encoded beforehand, live on
    the CPU and are lent to the device, one at a time."""

    device: torch.device
    frozen: torch.dtype
    """Of frozen weights, and what is computed in."""
    base: torch.dtype
    """In which denoiser and text encoders that train are loaded: float32 where their own weights change."""
    storage: Literal["same", "fp8", "int8"] = "same"
    """How a frozen denoiser's weights are kept."""

    @classmethod
    def of(cls, memory: MemorySpec, device: torch.device, dtype: torch.dtype, trains_base: bool = False) -> "Placement":
        return cls(device, dtype, torch.float32 if trains_base else dtype, memory.frozen_precision)

    @property
    def captions_at_once(self) -> int:
        """On the CPU nothing moves, and a stop is heard after every caption."""
        return 1 if self.device.type == "cpu" else AT_ONCE

    @contextmanager
    def lent(self, module: Module) -> Iterator[Module]:
        """A module on the device for as long as this lasts."""
        try:
            yield module.to(self.device)
        finally:
            module.cpu()
