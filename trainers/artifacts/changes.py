"""The change of a weight that a layer of a LoRA file stands for, from the layer's tensors by ComfyUI's names of them,
whatever kind of adapter it is; all tensors are float32."""
from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

from ..errors import UserError
from .adapters import format_of
from .layer_names.parts import ALPHA

Shape = tuple[int, ...]
LARGEST = 1 << 29
"""Values of a change; models have layers of a quarter of that at most. Small factors of a hostile file could ask for more
than any memory holds."""


def rank_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The rank that alpha is divided by; None for a full LoKr and a full difference, which are not scaled."""
    kind = format_of(shapes)
    return kind.rank(shapes) if kind else None


def shape_of(shapes: Mapping[str, Sequence[int]]) -> Shape | None:
    """The shape of the change, from the shapes of a layer's tensors; None for tensors that make none together.

    LoHa and LoKr of convolutions may come flat, [out, in · height · width].
    """
    kind = format_of(shapes)
    try:
        shape = kind.shape(shapes) if kind else None
    except (KeyError, IndexError):
        return None
    return shape if shape is not None and prod(shape) <= LARGEST else None


def with_scale(tensors: Mapping[str, Tensor], scale: float | None) -> dict[str, Tensor]:
    """A layer's tensors with a scale that its file keeps beside them."""
    kind = format_of(tensors)
    return dict(tensors) if scale is None or ALPHA in tensors or kind is None else kind.rescaled(tensors, scale)


def change_of_parts(tensors: Mapping[str, Tensor]) -> Tensor:
    """[out, in, …], without DoRA's magnitudes. UserError for kinds that depend on the base's weight."""
    kind = format_of(tensors)
    if kind is None:
        raise UserError(f"the layer holds {', '.join(tensors)}, which cannot be merged here")
    return kind.change(tensors)


def change_norm(tensors: Mapping[str, Tensor]) -> float | None:
    """Frobenius norm of the change, leaving DoRA's magnitudes out; None for methods whose change depends on the weight (OFT,
    GLoRA) and for incomplete layers."""
    shapes, kind = {part: tuple(tensor.shape) for part, tensor in tensors.items()}, format_of(tensors)
    return None if kind is None or shape_of(shapes) is None or prod(shapes.get(ALPHA, ())) != 1 else kind.norm(tensors)


def with_kernel(change: Tensor, kernel: Shape | None) -> Tensor:
    """A flat change [out, in · height · width] as [out, in, height, width], where the kernel is known and fits."""
    if not kernel or change.ndim != 2 or 0 in kernel or change.shape[1] % prod(kernel):
        return change
    return change.reshape(len(change), -1, *kernel)
