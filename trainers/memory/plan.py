"""What a training step will need on its device, from sizes and settings alone: no weight is read."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from .block_swap import ROOM, chosen
from .frozen_layers import FrozenLayer, is_wide, keep_packed
from .placement import Storage
from .quantization import PACKED

CONTEXT = 0.6e9
"""Bytes that CUDA and the libraries of its kernels take."""
SLACK = 1.05
"""Activations come and go in blocks of the allocator, which never fit without gaps."""


@dataclass(frozen=True)
class StepPlan:
    """Bytes on the device during a training step."""

    frozen: int
    """Weights that do not train and stay there."""
    swapped: tuple[int, ...]
    """Weights of each block that can be swapped, in the order of the data flow; not in `frozen`."""
    trained: int
    """What trains, the optimizer's state and the running mean."""
    working: int
    """Gradients, activations, and whatever else a step makes."""

    def weights(self, swapped_blocks: int) -> int:
        """Of all frozen weights, those that are there at a time."""
        away = [self.swapped[number] for number in chosen(len(self.swapped), swapped_blocks)]
        return self.frozen + sum(self.swapped) - sum(away) + min(ROOM, len(away)) * max(away, default=0)

    def peak(self, swapped_blocks: int = 0) -> int:
        """With so many of the blocks swapped."""
        return self.weights(swapped_blocks) + self.trained + self.working

    def on_gpu(self, swapped_blocks: int = 0) -> int:
        """`peak` with what CUDA and its allocator need beside it."""
        return int(CONTEXT + self.weights(swapped_blocks) + self.trained + SLACK * self.working)

    def fewest_blocks(self, free: int) -> int | None:
        """The smallest number of swapped blocks with which it fits on a GPU with so many free bytes; None for none."""
        counts = range(len(self.swapped) + 1)
        return next((count for count in counts if self.on_gpu(count) <= free), None)


def plan_step(model: nn.Module, blocks: Sequence[nn.Module], bytes_per_trained: int, step: Callable[[], int]) -> StepPlan:
    """For a model on the meta device, what trains attached, in the form in which it is kept: a denoiser, or one with text
    encoders. `blocks` are those of the denoiser that can be swapped. `bytes_per_trained`: of the optimizer's state, and of a
    running mean, for each number that trains. `step` gives what it makes (`dry_run.peak_of`)."""
    swapped = tuple(sum(_bytes(_kept(layer)) for layer in block.modules()) for block in blocks)
    all_frozen = _bytes(value for value in model.parameters() if not value.requires_grad) + _bytes(model.buffers())
    trained = [value for value in model.parameters() if value.requires_grad]
    return StepPlan(all_frozen - sum(swapped), swapped,
                    _bytes(trained) + bytes_per_trained * sum(value.numel() for value in trained), step())


def pack_without_weights(denoiser: nn.Module, storage: Storage, dtype: torch.dtype):
    """Leave a model on the meta device as `placing` would leave one with weights."""
    kind = PACKED[storage]
    for layer in filter(is_wide, list(denoiser.modules()) if kind else []):
        shape = cast("nn.Linear", layer).weight.shape
        scale = torch.empty(shape[0], *[1] * (len(shape) - 1), device="meta")
        keep_packed(layer, torch.empty(shape, dtype=kind, device="meta"), scale, dtype)


def _kept(layer: nn.Module) -> list[torch.Tensor]:
    """What of a layer is away when its block is swapped."""
    if isinstance(layer, FrozenLayer):
        return [layer.packed, layer.scale]
    weight = cast("nn.Linear", layer).weight if is_wide(layer) else None
    return [] if weight is None or weight.requires_grad else [weight]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
