"""The change of a weight that a layer of a LoRA file stands for, from the layer's tensors by ComfyUI's names of them.

Those of LyCORIS' `modules/*.py` and of ComfyUI's `comfy/weight_adapter/*.py`; all tensors are float32.
"""
from math import prod
from typing import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from .layer_names.parts import ALPHA, DORA, DOWN, MID, UP

Shape = tuple[int, ...]
LARGEST = 1 << 29
"""Values of a change; models have layers of a quarter of that at most. Small factors of a hostile file could ask for more
than any memory holds."""
_RANKED = (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
"""The tensors whose first axis is the rank."""


def rank_of(shapes: Mapping[str, Sequence[int]]) -> int | None:
    """The rank that alpha is divided by; None for a full LoKr and a full difference, which are not scaled."""
    part = next((part for part in _RANKED if part in shapes), None)
    return shapes[part][0] if part and shapes[part] else None


def shape_of(shapes: Mapping[str, Sequence[int]]) -> Shape | None:
    """The shape of the change, from the shapes of a layer's tensors; None for tensors that make none together.

    LoHa and LoKr of convolutions may come flat, [out, in · height · width].
    """
    shape = _shape_of(shapes)
    return shape if shape is not None and prod(shape) <= LARGEST else None


def _shape_of(shapes: Mapping[str, Sequence[int]]) -> Shape | None:
    try:
        if "diff" in shapes:
            return tuple(shapes["diff"])
        if DOWN in shapes:
            return _low_rank_shape(shapes[DOWN], shapes[UP], shapes.get(MID))
        if "hada_w1_a" in shapes:
            first, second = (_product(shapes, f"hada_w{number}", shapes.get(f"hada_t{number}")) for number in (1, 2))
            return first if first == second else None
        if any(part.startswith("lokr_") for part in shapes):
            small, large = (_product(shapes, f"lokr_w{number}", shapes.get("lokr_t2") if number == 2 else None)
                            for number in (1, 2))
            return (small[0] * large[0], small[1] * large[1], *large[2:]) if small and large and len(small) == 2 else None
    except (KeyError, IndexError):
        pass
    return None


def _low_rank_shape(down: Sequence[int], up: Sequence[int], mid: Sequence[int] | None) -> Shape | None:
    if mid is not None:  # Tucker form of LoCon: mid [rank, rank, height, width] between 1×1 factors
        fits = len(mid) == len(down) == len(up) == 4 and list(mid[:2]) == [up[1], down[0]] and (
            [*up[2:], *down[2:]] == [1, 1, 1, 1])
        return (up[0], down[1], *mid[2:]) if fits else None
    inner = 1
    for size in up[1:]:
        inner *= size
    return (up[0], *down[1:]) if inner == down[0] and down[0] > 0 and len(down) > 1 < len(up) else None


def _product(shapes: Mapping[str, Sequence[int]], name: str, tucker: Sequence[int] | None) -> Shape | None:
    if name in shapes:
        return tuple(shapes[name])
    first, second = shapes[f"{name}_a"], shapes[f"{name}_b"]
    if len(first) != 2 or len(second) != 2:
        return None
    if tucker is None:
        return (first[0], second[1]) if first[1] == second[0] > 0 else None
    return (first[1], second[1], *tucker[2:]) if list(tucker[:2]) == [first[0], second[0]] else None


def with_scale(tensors: Mapping[str, Tensor], scale: float | None) -> dict[str, Tensor]:
    """A layer's tensors with a scale that its file keeps beside them: as alpha, or where alpha has no meaning (a full LoKr)
    in a factor."""
    rank = rank_of({part: tensor.shape for part, tensor in tensors.items()})
    if scale is None or ALPHA in tensors:
        return dict(tensors)
    if rank:
        return {**tensors, ALPHA: torch.tensor(float(scale * rank))}
    return {**tensors, **({"lokr_w1": tensors["lokr_w1"] * scale} if "lokr_w1" in tensors else {})}


def change_of_parts(tensors: Mapping[str, Tensor]) -> Tensor:
    """[out, in, …], without DoRA's magnitudes. UserError for kinds that depend on the base's weight."""
    alpha = float(tensors[ALPHA]) if ALPHA in tensors else None
    rank = rank_of({part: tensor.shape for part, tensor in tensors.items()})
    scale = 1.0 if alpha is None or not rank else alpha / rank
    if "diff" in tensors:
        return tensors["diff"]
    if DOWN in tensors:
        down, up = tensors[DOWN], tensors[UP]
        if MID in tensors:
            return scale * torch.einsum("orxy,rskl,sixy->oikl", up, tensors[MID], down)
        return scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])
    if "hada_w1_a" in tensors:
        return scale * _factor(tensors, "hada_w1", "hada_t1") * _factor(tensors, "hada_w2", "hada_t2")
    if any(part.startswith("lokr_") for part in tensors):
        # alpha counts only where a factor is itself a product: LyCORIS and ComfyUI agree.
        small, large = _factor(tensors, "lokr_w1"), _factor(tensors, "lokr_w2", "lokr_t2")
        return scale * torch.kron(small.reshape(*small.shape, *[1] * (large.ndim - 2)), large)
    raise UserError(f"the layer holds {', '.join(tensors)}, which cannot be merged here")


def _factor(tensors: Mapping[str, Tensor], name: str, tucker: str = "") -> Tensor:
    if name in tensors:
        return tensors[name]
    first, second = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return torch.einsum("ijkl,jr,ip->prkl", tensors[tucker], second, first) if tucker in tensors else first @ second


def with_kernel(change: Tensor, kernel: Shape | None) -> Tensor:
    """A flat change [out, in · height · width] as [out, in, height, width], where the kernel is known and fits."""
    size = kernel[0] * kernel[1] if kernel else 0
    if change.ndim != 2 or not size or change.shape[1] % size:
        return change
    return change.reshape(len(change), -1, *kernel)


def dora_scale(vector: Tensor, up: Tensor, dimensions: int) -> Tensor:
    """DoRA's magnitudes with all dimensions: peft's flat [out] becomes [out, 1, …]."""
    return vector.reshape(-1, *[1] * (dimensions - 1)) if vector.ndim == 1 and len(vector) == len(up) else vector


def decomposed(key: str, base: Tensor, change: Tensor, lengths: Tensor) -> Tensor:
    """The change of a DoRA layer (Liu et al. 2024, arXiv:2402.09353, eq. 5): W' · lengths / ‖W'‖ - W with W' = W + change.

    `lengths` are of input columns, [1, in, …], or of outputs, [out, 1, …] as in the paper; a square layer's are told apart
    by where their single dimension is.
    """
    rows, columns = base.shape[:2]
    if lengths.ndim < 2 or lengths.shape[:2] not in ((1, columns), (rows, 1)) or lengths[0, 0].numel() != 1:
        raise UserError(f"{key} is a DoRA layer whose magnitudes, {list(lengths.shape)}, do not fit its weight, "
                        f"{list(base.shape)}: it is for another model")
    merged = base + change
    by_rows = lengths.shape[:2] == (rows, 1)
    flat = merged.flatten(1) if by_rows else merged.transpose(0, 1).flatten(1)
    norms = flat.norm(dim=1) + torch.finfo(torch.float32).eps
    shape = [-1 if by_rows else 1, 1 if by_rows else -1, *[1] * (base.ndim - 2)]
    return merged * (lengths.reshape(shape) / norms.reshape(shape)) - base


__all__ = ["DORA", "change_of_parts", "decomposed", "dora_scale", "rank_of", "shape_of", "with_kernel", "with_scale"]
