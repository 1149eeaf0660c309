"""Where the components of a model live and in what form, decided once for a run: loading, encoding and previews ask."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ..spec import MemorySpec
from .activation_offload import Offloaded
from .block_swap import BlockSwap, chosen
from .frozen_layers import is_wide, keep_packed
from .quantization import PACKED, Precision, pack

AT_ONCE = 64
"""Captions that one text encoder encodes before the next one takes its place: moving T5 takes half a second, and what the
first ones have said waits in memory, with T5's 4 MB for each caption."""
Module = TypeVar("Module", bound=nn.Module)
Storage = Literal["same", "fp8", "int8"]
Place = Callable[[nn.Module, str, Tensor], None]
"""Puts a tensor of a frozen model where it belongs: (layer, name of its parameter or buffer, tensor on the CPU)."""
Keeper = Callable[[Sequence[nn.Module]], Place]
"""Makes a Place, for a denoiser that has these blocks, which can be swapped, in the order of the data flow. Neither they nor
the rest need weights yet."""


@dataclass(frozen=True)
class Placement:
    """The denoiser and what trains live on `device`. A VAE, and text encoders whose captions are encoded beforehand, live on
    the CPU and are lent to the device, one at a time."""

    device: torch.device
    frozen: torch.dtype
    """Of frozen weights, and what is computed in."""
    base: torch.dtype
    """In which denoiser and text encoders that train are loaded: float32 where their own weights change."""
    storage: Storage = "same"
    """How a frozen denoiser's weights are kept."""
    text_storage: Storage = "same"
    """How those of text encoders are kept whose captions are encoded beforehand."""
    swapped_blocks: int = 0
    """Blocks of the denoiser that come to the device when they are needed, from main memory or, on the CPU, from a file."""
    folder: Path = Path()
    """Of that file."""
    offloads: bool = False
    """Whether what the backward pass needs leaves the device meanwhile."""

    @classmethod
    def of(cls, memory: MemorySpec, device: torch.device, dtype: torch.dtype, trains_base: bool = False,
           folder: Path = Path()) -> "Placement":
        return cls(device, dtype, torch.float32 if trains_base else dtype, memory.frozen_precision, memory.text_precision,
                   memory.swapped_blocks, folder, memory.offload_activations and device.type != "cpu")

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

    def around_forward(self) -> AbstractContextManager:
        """To be entered for a forward pass of the denoiser that a backward pass follows."""
        return Offloaded() if self.offloads else nullcontext()

    def keeper(self, blocks: Sequence[nn.Module]) -> Place:
        """`placing` for the weights of a denoiser: a `Keeper`."""
        away = [blocks[number] for number in chosen(len(blocks), self.swapped_blocks)]
        home = "disk" if self.device.type == "cpu" else "memory"
        swap = BlockSwap(away, PACKED[self.storage], self.frozen, self.device, home, self.folder) if away else None
        return placing(self.storage, self.frozen, self.device, swap)

    def text_keeper(self, layer: nn.Module, name: str, tensor: Tensor):
        """The same for text encoders that do not train: a `Place` itself, since nothing of them is swapped."""
        placing(self.text_storage, self.frozen, self.device)(layer, name, tensor)


def placing(storage: Storage, dtype: torch.dtype, device: torch.device, swap: BlockSwap | None = None) -> Place:
    """What puts each tensor of a frozen model where it belongs, while it is read or afterwards, so that no more than one
    layer is ever there twice. Computed with in `dtype`; `device` is where packing goes fast."""
    def place(layer: nn.Module, name: str, tensor: Tensor):
        if name != "weight" or not is_wide(layer):
            assign(layer, name, tensor)
        elif swap and layer in swap.layers:
            swap.keep(layer, (tensor,) if storage == "same" else packed_on(device, tensor, storage))
        elif storage == "same":
            assign(layer, name, tensor)
        else:
            keep_packed(layer, *packed_on(device, tensor, storage), dtype)
    return place


def as_they_are(blocks: Sequence[nn.Module]) -> Place:
    """The `Keeper` that changes nothing."""
    return assign


def settle(module: nn.Module, place: Place):
    """Put the weights of a model where they belong that was loaded whole, one frozen layer after the other."""
    for layer in list(module.modules()):
        if is_wide(layer) and not any(parameter.requires_grad for parameter in layer.parameters()):
            place(layer, "weight", cast("nn.Linear", layer).weight)


def assign(layer: nn.Module, name: str, tensor: Tensor):
    """The tensor as a frozen parameter, or as a buffer."""
    setattr(layer, name, nn.Parameter(tensor, requires_grad=False) if name in layer._parameters else tensor)


def packed_on(device: torch.device, weight: Tensor, precision: Precision) -> tuple[Tensor, Tensor]:
    """`pack`, which a GPU does faster; the result is where the weight was."""
    packed, scale = pack(weight.to(device), precision)
    return packed.to(weight.device), scale.to(weight.device)
