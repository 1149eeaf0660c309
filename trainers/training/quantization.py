"""Frozen layers whose weights are stored in 8 bits and computed with in the run's precision.

The backward pass through a frozen layer needs its weight again. Wrappers made for inference do not provide for that:
diffusers' layerwise casting leaves the unpacked weights of linear layers to autograd until then and fails at convolutions
in float32; torchao's weight-only tensors leave them too, and have no convolutions. These layers keep the packed weight
alone and unpack it a second time.
"""
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ..errors import UserError

FP8 = torch.float8_e4m3fn
LIMITS = {"int8": 127.0, "fp8": torch.finfo(FP8).max}
Stored = Literal["fp8", "int8"]
SMALLEST_WIDTH = 16
"""Layers with fewer channels on a side stay as they are: the first and the last, small, and where rounding shows."""


def store_frozen(module: nn.Module, precision: Stored, dtype: torch.dtype):
    """Pack the weights of all linear and convolution layers in `module` that are frozen; adapters beside them stay.

    The layers stay what they are to whoever looks at them: their `weight` is the unpacked one, in `dtype`.
    """
    for layer in [each for each in module.modules() if isinstance(each, (nn.Linear, nn.Conv2d))]:
        kind = _KINDS.get(type(layer))
        if kind and min(layer.weight.shape[:2]) >= SMALLEST_WIDTH and not any(
                parameter.requires_grad for parameter in layer.parameters()):
            kind.take_over(layer, *pack(layer.weight, precision), dtype)


def require_support(precision: Stored, device: torch.device):
    """Raise UserError when the device cannot convert the numbers."""
    try:
        packed, scale = pack(torch.ones(2, 2, device=device), precision)
        unpack(packed, scale, torch.float32)
    except (RuntimeError, TypeError) as problem:
        raise UserError(f"This device ({device.type}) cannot store weights in {precision}. Set frozen_precision to "
                        f"{'int8 or ' if precision == 'fp8' else ''}same.") from problem


def pack(weight: Tensor, precision: Stored) -> tuple[Tensor, Tensor]:
    """(bytes in the shape of `weight`, float32 scale of every output channel). fp8 is e4m3 (Micikevicius et al. 2022,
    arXiv:2209.05433); its bytes are kept as uint8, which every device, cast and process group leaves alone."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / LIMITS[precision]
    scaled = weight / scale
    return scaled.round().to(torch.int8) if precision == "int8" else scaled.to(FP8).view(torch.uint8), scale


def unpack(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    values = packed if packed.dtype == torch.int8 else packed.view(FP8)
    # Packed values are exact in every dtype, but scales are not, and may be too small for fp16: multiplied as float32.
    return values.to(dtype).mul_(scale)


class _Layer(nn.Module):
    """What packed layers have in common. They are made from layers that exist already, in place."""

    packed: nn.Parameter
    scale: nn.Parameter
    compute_dtype: torch.dtype

    @classmethod
    def take_over(cls, layer: nn.Module, packed: Tensor, scale: Tensor, dtype: torch.dtype):
        del layer.weight
        layer.__class__ = cls
        taken = cast("_Layer", layer)  # a checker does not see that its class has changed
        taken.compute_dtype = dtype
        taken.packed = nn.Parameter(packed, requires_grad=False)
        taken.scale = nn.Parameter(scale, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        return unpack(self.packed, self.scale, self.compute_dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return _Frozen.apply(inputs.to(self.compute_dtype), self)

    def multiply(self, inputs: Tensor) -> Tensor:
        raise NotImplementedError

    def multiply_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of inputs of this shape."""
        raise NotImplementedError


class PackedLinear(_Layer, nn.Linear):
    def multiply(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.weight, self.bias)

    def multiply_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return gradient @ self.weight


class PackedConv2d(_Layer, nn.Conv2d):
    def multiply(self, inputs: Tensor) -> Tensor:
        return F.conv2d(inputs, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def multiply_back(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return conv2d_input(
            shape, self.weight, gradient,  # torch's types say int for what may be tuples
            self.stride, self.padding, self.dilation, self.groups)  # pyright: ignore[reportArgumentType]


_KINDS: dict[type[nn.Module], type[_Layer]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}


class _Frozen(torch.autograd.Function):
    """A frozen layer. Its weight is unpacked for the product, and again for the gradient of the inputs."""

    @staticmethod
    def forward(ctx, inputs: Tensor, layer: _Layer) -> Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return layer.multiply(inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return ctx.layer.multiply_back(gradient, ctx.shape), None
