"""Autoencoders that are filled tensor by tensor, under the names of their original file or diffusers', and written back
under the original ones."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..artifacts.ldm_layout import Original
from ..artifacts.tensor_files import Entry, entry_of
from ..spec import BaseModelSpec
from .component_loading import explained
from .filling import fill, without_weights
from .model_parts import ModelParts

Shapes = Mapping[str, tuple[int, ...]]
COUNTER = ".num_batches_tracked"
"""Of a batch norm: nothing reads it, and not every file has it."""


@dataclass(frozen=True)
class VaeFiles:
    """How an autoencoder of diffusers lies in files. `make` is called on the meta device."""

    make: Callable[[], nn.Module]
    places: Callable[[Shapes], Mapping[str, Original]]
    """The original names and shapes of its tensors, by diffusers' names."""
    others: Mapping[str, str]
    """How names may begin instead → how they begin in `places`."""

    def load(self, base: BaseModelSpec) -> nn.Module:
        """In float32, frozen, on the CPU."""
        with explained("VAE", base):
            vae = without_weights(self.make)
            fill(vae, self._own(base, vae), torch.float32, base.name)
        return vae.requires_grad_(False).eval()

    def original(self, base: BaseModelSpec) -> dict[str, Entry]:
        """Its tensors as the original file has them, each read when it is asked for."""
        with explained("VAE", base):
            vae = without_weights(self.make)
            own = self._own(base, vae)
            return {place.name: replace(_shaped(own[name], place.shape), name=place.name)
                    for name, place in self.places(_shapes(vae)).items() if name in own}

    def _own(self, base: BaseModelSpec, vae: nn.Module) -> dict[str, Entry]:
        """The stored tensors by the names that `vae` gives them, in its shapes."""
        wanted = _shapes(vae)
        named = {place.name: name for name, place in self.places(wanted).items()} | {name: name for name in wanted}
        found = {name: entry_of(name, [torch.zeros((), dtype=torch.int64)]) for name in wanted if name.endswith(COUNTER)}
        for stored, entry in ModelParts.of(base)["vae"].entries().items():
            start = next((other for other in self.others if stored.startswith(other)), "")
            name = named.get(self.others.get(start, "") + stored.removeprefix(start))
            if name is not None:
                found[name] = _shaped(entry, wanted[name])
        return found


def _shapes(vae: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def _shaped(entry: Entry, shape: tuple[int, ...]) -> Entry:
    """In another shape that differs by axes of length 1 alone: kernels of one pixel or one frame may have them or not."""
    if tuple(entry.shape) == shape or _long(entry.shape) != _long(shape):
        return entry
    return replace(entry, shape=shape, pieces=lambda: [entry.tensor().reshape(shape)], stored=None, scale=None)


def _long(shape: tuple[int, ...]) -> list[int]:
    return [length for length in shape if length != 1]
