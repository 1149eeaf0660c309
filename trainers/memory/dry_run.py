"""How much memory a computation takes, found by running it on tensors that have sizes and no memory (the meta device)."""
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._pytree import tree_map_only

from .alive_bytes import AliveBytes

Model = TypeVar("Model", bound=nn.Module)
HALF = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm, Tensor.__matmul__, Tensor.matmul}
FULL = {F.layer_norm, F.group_norm, F.rms_norm, F.softmax, torch.softmax, Tensor.softmax, F.mse_loss, torch.pow, Tensor.pow}
"""What autocast computes in its own precision, and what in float32: of torch's lists for CUDA. The meta device has none."""


class _Attention(torch.autograd.Function):
    """A fused attention, which keeps its inputs, its result and a logarithm for each row, and no scores (Dao et al. 2022,
    arXiv:2205.14135). On the meta device torch would take the kind that makes all scores."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _AsOnDevice(TorchFunctionMode):
    """Operations as an accelerator runs them, with autocast to `dtype` or without (None)."""

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args[:3])) | kwargs
            return _Attention.apply(*(self._cast(named[name], self.dtype) for name in ("query", "key", "value")))
        wanted = self.dtype if func in HALF else torch.float32 if func in FULL else None
        if self.dtype is not None and wanted is not None:
            args, kwargs = tree_map_only(Tensor, lambda each: self._cast(each, wanted), (args, kwargs))
        return func(*args, **kwargs)

    @staticmethod
    def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor


@contextmanager
def _also_in_backward_passes(mode: TorchFunctionMode) -> Iterator[None]:
    """Torch leaves such modes behind when a backward pass begins. A module that is called there, because it was
    checkpointed, takes the mode up again."""
    entered: list[nn.Module] = []

    def before(module: nn.Module, inputs: object):
        if mode not in _get_current_function_mode_stack():
            mode.__enter__()
            entered.append(module)

    def after(module: nn.Module, inputs: object, result: object):
        if entered and entered[-1] is module:
            entered.pop()
            mode.__exit__(None, None, None)

    hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def empty_copy(model: Model) -> Model:
    """A copy on the meta device."""
    empty: dict[int, Tensor] = {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    for each in model.parameters():
        empty[id(each)] = nn.Parameter(torch.empty_like(each, device="meta"), each.requires_grad)
    return copy.deepcopy(model, empty)


def peak_of(computation: Callable[[], object], autocast: torch.dtype | None) -> int:
    """The most bytes of tensors that are alive at a time, of those that the computation makes. What it is given is not
    counted, and neither is what kernels take for themselves.

    `computation` must work on the meta device: it may ask for no tensor's value.
    """
    with AliveBytes() as alive, _AsOnDevice(autocast) as mode, _also_in_backward_passes(mode):
        computation()
    return alive.most
