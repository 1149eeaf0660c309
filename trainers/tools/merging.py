"""Arithmetic on LoRA files: several into one, less of one, another rank. Layers are matched by their keys.

Low-rank layers are joined exactly by putting their factors side by side; the rank is then the sum of the ranks. Other
kinds (LoHa, LoKr, Tucker), and every layer when a smaller rank is asked for, go through the change itself and its best
approximation of that rank (`decomposition`).
"""
from dataclasses import dataclass, replace
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor

from ..artifacts.layer_names import is_text, place
from ..artifacts.layer_names.blocks import CONVOLUTION
from ..artifacts.lora import LoraWeight
from ..artifacts.lora_file import FileLayer, LoraFile
from ..errors import UserError
from .decomposition import Factors, decompose, rank_by_energy, rank_by_knee, rank_by_ratio
from .extraction import split

RULES = ("exact", "fixed", "energy", "ratio", "knee")


@dataclass(frozen=True)
class Resize:
    """How large the result's layers may be. "exact" keeps everything; the other rules are those of extraction."""

    rule: str = "exact"
    rank: int = 0
    threshold: float = 0.9

    def choose(self, factors: Factors) -> int:
        if self.rule == "energy":
            return rank_by_energy(factors, self.threshold)
        if self.rule == "ratio":
            return rank_by_ratio(factors, self.threshold)
        return rank_by_knee(factors) if self.rule == "knee" else len(factors.values)


class Merged(NamedTuple):
    weight: LoraWeight
    energy: float
    """Squared norm of the sum before it was cut."""


def merge(files: Sequence[LoraFile], strengths: Sequence[float], text_strengths: Sequence[float] | None = None,
          resize: Resize = Resize(), on_layer: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Merged]:
    """The sum of strength · file, layer by layer. A negative strength subtracts. Text encoders' layers take
    `text_strengths` (by default `strengths`)."""
    keys = list(dict.fromkeys(key for file in files for key in file.layers))
    text_strengths = strengths if text_strengths is None else text_strengths
    for done, key in enumerate(keys, start=1):
        chosen = text_strengths if is_text(key) else strengths
        parts = [(file.layers[key], strength) for file, strength in zip(files, chosen, strict=True)
                 if key in file.layers and strength]
        on_layer(done, len(keys))
        if parts:
            yield merged_layer(key, parts, resize)


def merged_layer(key: str, parts: Sequence[tuple[FileLayer, float]], resize: Resize) -> Merged:
    parts = _unfolded(parts)
    shapes = {layer.shape for layer, _ in parts}
    if len(shapes) > 1:
        raise UserError(f"The files differ in the shape of {key} ({' and '.join(map(str, sorted(shapes)))}): they were made "
                        "for different base models and cannot be merged.")
    if all(layer.is_low_rank for layer, _ in parts):
        joined = join(key, [(layer.low_rank(), strength) for layer, strength in parts])
        largest = min(len(joined.up), joined.down[0].numel())
        if resize.rule != "exact":
            return reduced(joined, resize)
        return Merged(joined, joined.change_norm() ** 2) if len(joined.down) <= largest else reduced(joined, resize)
    change = sum(strength * layer.change() for layer, strength in parts)
    matrix = change.flatten(1)
    limit = min(matrix.shape) if resize.rule == "exact" else resize.rank
    factors = decompose(matrix, limit, exact=resize.rule == "exact")
    # What is left beyond rounding, where everything shall be kept.
    significant = int((factors.values > 1e-6 * factors.values[0]).sum()) or 1
    rank = significant if resize.rule == "exact" else resize.choose(factors)
    return Merged(weight_of(key, factors.first(rank), tuple(change.shape)), factors.energy)


def _unfolded(parts: Sequence[tuple[FileLayer, float]]) -> Sequence[tuple[FileLayer, float]]:
    """Flat changes [out, in · height · width] with the kernel that another file has of the same layer."""
    kernels = {layer.shape[2:] for layer, _ in parts if len(layer.shape) > 2}
    if len(kernels) != 1:
        return parts
    kernel = next(iter(kernels))
    return [(layer if len(layer.shape) > 2 else replace(layer, kernel=kernel), strength) for layer, strength in parts]


def flat_note(files: Iterable[LoraFile]) -> list[str]:
    """Says so where the kernel of a convolution's LoHa or LoKr is in none of the files and not known by name."""
    folded: dict[str, bool] = {}
    for file in files:
        for key, layer in file.layers.items():
            flat = len(layer.shape) == 2 and layer.kernel is None and not layer.is_low_rank
            folded[key] = folded.get(key, True) and flat and place(key).kind == CONVOLUTION
    keys = [key for key, flat in folded.items() if flat]
    return [f"{len(keys)} layers, for example {keys[0]}, may be convolutions whose kernel no file tells; their factors are "
            "flat, which ComfyUI reads and other programs may not"] if keys else []


def join(key: str, weights: Sequence[tuple[LoraWeight, float]]) -> LoraWeight:
    """Σ strength · alpha / rank · up · down as one pair of factors: ups side by side, downs one below the other. The
    scale of each goes evenly into both factors, its sign into `up`; alpha is the rank."""
    downs, ups = [], []
    for weight, strength in weights:
        scale = strength * weight.alpha / len(weight.down)
        root = abs(scale) ** 0.5
        downs.append(root * weight.down)
        ups.append((root if scale >= 0 else -root) * weight.up)
    down, up = torch.cat(downs), torch.cat(ups, dim=1)
    return LoraWeight(key, down, up, float(len(down)))


def reduced(weight: LoraWeight, resize: Resize) -> Merged:
    """The best approximation of a smaller rank, from the factors alone: the product is never formed.

    With up = Q₁R₁ and downᵀ = Q₂R₂ the singular values of up · down are those of the small R₁R₂ᵀ.
    """
    shape = (len(weight.up), *weight.down.shape[1:])
    scale = weight.alpha / len(weight.down)
    left, upper = torch.linalg.qr(weight.up.flatten(1))
    right, lower = torch.linalg.qr(weight.down.flatten(1).T)
    inner_left, values, inner_right = torch.linalg.svd(scale * (upper @ lower.T), full_matrices=False)
    energy = float((values.double() ** 2).sum())
    rank = len(values) if resize.rule == "exact" else min(resize.rank, len(values))
    factors = Factors(left @ inner_left[:, :rank], values[:rank], inner_right[:rank] @ right.T, energy)
    return Merged(weight_of(weight.key, factors.first(resize.choose(factors)), shape), energy)


def weight_of(key: str, factors: Factors, shape: tuple[int, ...]) -> LoraWeight:
    down, up = split(factors, shape, clamp=1.0)
    return LoraWeight(key, down, up, float(len(factors.values)))


def change_of(weight: LoraWeight) -> Tensor:
    """alpha / rank · up · down, float32 [out, in, …]."""
    product = weight.up.float().flatten(1) @ weight.down.float().flatten(1)
    return weight.alpha / len(weight.down) * product.reshape(len(weight.up), *weight.down.shape[1:])
