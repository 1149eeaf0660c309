"""Layers of LoRA files that are some rows of a model's layer, as that layer, and back: diffusers has q, k and v apart where
the original file has them joined, and shift and scale the other way round.

Two factors stay two factors, and nothing is rounded: rows that a layer does not speak of are zeros in `up`, layers of the
same rows stand side by side, and where all have the same `down` it is kept once, so that three of rank r that were cut out
of one are of rank r again.
"""
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from .layer_names import Layer
from .layer_names.key_map import Split
from .layer_names.parts import ALPHA, DOWN, UP
from .lora_file import FileLayer
from .tensor_files import Entry
from .weights import Weights

Part = tuple[FileLayer, Split]


def joined(layer: Layer, parts: Sequence[Part]) -> FileLayer:
    """Plain LoRA layers, each some rows of the model's `layer`, as one: the sum of all."""
    factors, rows = [each.low_rank() for each, _ in parts], _rows_of(layer, parts)
    shape = tuple(factors[0].down.shape[1:])
    if any(tuple(each.down.shape[1:]) != shape for each in factors):
        raise _of_different_sizes(layer, parts)
    columns, ones = shape[0], [1] * (len(shape) - 1)
    scales = [each.alpha / len(each.down) for each in factors]
    dtypes = {each.dtype for each, _ in parts}
    same_scale = all(scale == scales[0] for scale in scales)
    dtype = dtypes.pop() if len(dtypes) == 1 and same_scale else torch.float32
    same_down = all(torch.equal(each.down, factors[0].down) for each in factors)
    rank = len(factors[0].down) if same_down else sum(len(each.down) for each in factors)

    def downs() -> Tensor:
        return torch.cat([each.low_rank().down for each, _ in (parts[:1] if same_down else parts)])

    def ups() -> Tensor:
        found, start = torch.zeros(rows, rank, *ones), 0
        for (each, split), scale in zip(parts, scales):
            up = each.low_rank().up if same_scale else scale * each.low_rank().up
            found[split.rows(rows, columns), start:start + up.shape[1]] += up
            start += 0 if same_down else up.shape[1]
        return found
    alpha = torch.tensor(scales[0] * rank if same_scale else float(rank))
    return _made(layer.key, parts, {DOWN: (dtype, (rank, *shape), downs), UP: (dtype, (rows, rank, *ones), ups),
                                    ALPHA: (torch.float32, (), lambda: alpha)})


def as_difference(layer: Layer, part: Part) -> FileLayer:
    """A layer of any kind that is some rows of the model's `layer`, as the full difference of that."""
    each, split = part
    rows, shape = _rows_of(layer, [part]), each.shape

    def difference() -> Tensor:
        found = torch.zeros(rows, *shape[1:])
        found[split.rows(rows, shape[1])] = each.change()
        return found
    return _made(layer.key, [part], {"diff": (torch.float32, (rows, *shape[1:]), difference)})


def cut(layer: Layer, whole: FileLayer) -> dict[str, FileLayer]:
    """A plain LoRA layer as those that diffusers has instead, by their names. Parts that it does not change are left out,
    and of each the ranks that do nothing to it: a layer out of `joined` is what it was."""
    component, weight = layer.diffusers.partition(".")[0], whole.low_rank()
    rows, columns, found = len(weight.up), weight.down.shape[1], {}
    for split in layer.splits:
        if rows % split.of:
            raise _of_different_sizes(layer, [(whole, split)])
        where, key = split.rows(rows, columns), f"{component}.{split.name}"
        ranks = weight.up[where].ne(0).transpose(0, 1).flatten(1).any(dim=1).nonzero().flatten()
        if len(ranks):
            found[key] = _some_of(whole, key, split, where, ranks)
    return found


def _some_of(whole: FileLayer, key: str, split: Split, where: slice | Tensor, ranks: Tensor) -> FileLayer:
    def down() -> Tensor:
        return whole.low_rank().down[ranks]

    def up() -> Tensor:
        return whole.low_rank().up[where][:, ranks]
    alpha = torch.tensor(whole.low_rank().alpha * len(ranks) / len(whole.low_rank().down))
    return _made(key, [(whole, split)], {DOWN: (whole.dtype, tuple(down().shape), down),
                                         UP: (whole.dtype, tuple(up().shape), up),
                                         ALPHA: (torch.float32, (), lambda: alpha)})


def _rows_of(layer: Layer, parts: Sequence[Part]) -> int:
    """How many rows the model's layer has, by those of its parts."""
    found = {split.native_rows(each.shape[0]) for each, split in parts}
    rows = found.pop()
    if found or rows is None:
        raise _of_different_sizes(layer, parts)
    return rows


def _made(key: str, parts: Sequence[Part], tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...], Callable[[], Tensor]]]
          ) -> FileLayer:
    """A layer whose tensors are computed when they are asked for: (dtype, shape, how) by its part."""
    def entry(part: str, dtype: torch.dtype, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Entry:
        return Entry(f"{key}.{part}", dtype, shape, lambda: [make().to(dtype)])
    entries = [entry(part, *how) for part, how in tensors.items()]
    return FileLayer(key, Weights(parts[0][0].file.title, {each.name: each for each in entries}),
                     {part: each.name for part, each in zip(tensors, entries)})


def _of_different_sizes(layer: Layer, parts: Sequence[Part]) -> UserError:
    listed = ", ".join(f"{each.key} {list(each.shape)}" for each, _ in parts[:7])
    return UserError(f"{parts[0][0].file.title!r}: {listed} make no layer {layer.native} together. The file is damaged, or "
                     "for another model.")
