"""Frozen layers whose weights are not there as such: stored in 8 bits, or away until they are needed.

The backward pass through a frozen layer needs its weight again. Wrappers made for inference do not provide for that:
diffusers' layerwise casting leaves the unpacked weights of linear layers to autograd until then and fails at convolutions
in float32; torchao's weight-only tensors leave them too, and have no convolutions. These layers leave autograd nothing: they
make the weight a second time.
"""
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from .quantization import unpack


class Stored(Protocol):
    """Where a layer's weight is kept, outside of the layer."""

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """(weight, None), or (packed bytes, scale): on the device, until another layer's are asked for."""
        ...

    def expect(self, backward: bool):
        """A forward pass begins; whether a backward pass follows."""
        ...


class FrozenLayer(nn.Module):
    """What these layers have in common. They are made from layers that exist already, in place, and stay what they were to
    whoever looks at them: their `weight` is one to compute with, in `compute_dtype`."""

    packed: nn.Parameter
    scale: nn.Parameter
    stored: Stored | None
    compute_dtype: torch.dtype
    plain: type[nn.Module]
    """What it was made from."""

    def __new__(cls, *arguments, **named):
        """Whoever asks the class of a layer for another one, as peft does for an adapter beside a convolution, gets a plain
        layer: these are never made anew."""
        return cls.plain(*arguments, **named) if arguments or named else super().__new__(cls)

    def _in_use(self) -> Tensor:
        """The weight, for the next operation alone."""
        values, scale = self.stored.tensors() if self.stored else (self.packed, self.scale)
        return values if scale is None else unpack(values, scale, self.compute_dtype)

    @property
    def weight(self) -> Tensor:
        weight = self._in_use()
        return weight.clone() if self.stored and weight._is_view() else weight

    def forward(self, inputs: Tensor) -> Tensor:
        if self.stored:
            self.stored.expect(backward=torch.is_grad_enabled())
        return _Frozen.apply(inputs.to(self.compute_dtype), self)

    def multiply(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def multiply_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of inputs of this shape."""
        raise NotImplementedError


class FrozenLinear(FrozenLayer, nn.Linear):
    plain = nn.Linear

    def multiply(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self._in_use(), self.bias)

    def multiply_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return gradient @ self._in_use()


class FrozenConv2d(FrozenLayer, nn.Conv2d):
    plain = nn.Conv2d

    def multiply(self, inputs: Tensor) -> Tensor:
        return F.conv2d(inputs, self._in_use(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def multiply_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return conv2d_input(
            shape, self._in_use(), gradient,  # torch's types say int for what may be tuples
            self.stride, self.padding, self.dilation, self.groups)  # pyright: ignore[reportArgumentType]


KINDS: dict[type[nn.Module], type[FrozenLayer]] = {kind.plain: kind for kind in (FrozenLinear, FrozenConv2d)}
SMALLEST_WIDTH = 16
"""Layers with fewer channels on a side stay as they are: the first and the last, small, and where rounding shows."""


def is_wide(layer: nn.Module) -> bool:
    """Whether a layer, which may still be empty, is one whose weight can be kept in another form."""
    return type(layer) in KINDS and min(cast("nn.Linear", layer).weight.shape[:2]) >= SMALLEST_WIDTH


def keep_packed(layer: nn.Module, packed: Tensor, scale: Tensor, dtype: torch.dtype):
    """The layer computes in `dtype` with these bytes, in the shape of its weight, times `scale`, float32, which is one
    number or one for each output channel. The bytes of fp8 are uint8."""
    taken = _changed(layer, dtype)
    taken.packed, taken.scale = (nn.Parameter(each, requires_grad=False) for each in (packed, scale))


def keep_outside(layer: nn.Module, stored: Stored, dtype: torch.dtype):
    """The layer asks `stored` for its weight whenever it computes."""
    _changed(layer, dtype).stored = stored


def _changed(layer: nn.Module, dtype: torch.dtype) -> FrozenLayer:
    kind = KINDS[type(layer)]
    del layer.weight
    layer.__class__ = kind
    taken = cast("FrozenLayer", layer)  # a checker does not see that its class has changed
    taken.compute_dtype, taken.stored = dtype, None
    return taken


class _Frozen(torch.autograd.Function):
    """A frozen layer, with its weight made for the product, and again for the gradient of the inputs."""

    @staticmethod
    def forward(ctx, inputs: Tensor, layer: FrozenLayer) -> Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.multiply(inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.layer.multiply_back(gradient, ctx.shape), None
