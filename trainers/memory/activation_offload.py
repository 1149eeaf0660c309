"""What the backward pass needs waits in main memory: with gradient checkpointing, the inputs of all blocks."""
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

SMALLEST = 2**20
"""Bytes. Smaller tensors stay: moving them saves nothing."""


class Offloaded(saved_tensors_hooks):
    """A forward pass inside leaves its tensors in main memory, in pinned memory where a GPU computes, from which they come
    back for the backward pass. Weights stay where they are. Copies are queued between the computations of the GPU: 28 MB for
    each block of Flux at 1024 × 1024, about a millisecond."""

    def __init__(self, smallest: int = SMALLEST):
        self.smallest = smallest
        super().__init__(self._away, lambda back: back())

    def _away(self, tensor: Tensor) -> Callable[[], Tensor]:
        weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        if weight or tensor.numel() * tensor.element_size() < self.smallest:
            return lambda: tensor
        pinned, device = tensor.device.type == "cuda", tensor.device
        if device.type == "meta":  # a dry run (`dry_run`): nothing is there that could be moved
            shape, dtype = tensor.shape, tensor.dtype
            return lambda: torch.empty(shape, dtype=dtype, device=device)
        away = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        away.copy_(tensor, non_blocking=pinned)
        return lambda: away.to(device, non_blocking=pinned, copy=True)
