"""Arithmetic on LoRA files: several into one, less of one, another rank. Layers are matched by their keys.

Low-rank layers are joined exactly by putting their factors side by side; the rank is then the sum of the ranks. Other
kinds (LoHa, LoKr, Tucker), and every layer when a smaller rank is asked for, go through the change itself and its best
approximation of that rank (`decomposition`).
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..artifacts.adapters.lora import LoraWeight
from ..artifacts.layer_names import family_of_lora, is_text, place
from ..artifacts.layer_names.blocks import CONVOLUTION
from ..artifacts.lora import write_lora
from ..artifacts.lora_file import FileLayer, LoraFile, read_lora
from ..artifacts.lora_precision import low_rank_tensors
from ..artifacts.lora_renaming import under_one_makers_names
from ..artifacts.metadata import merge_metadata
from ..errors import Cancelled, UserError
from ..events import Emit, WorkingEvent
from ..reports import MergeReport, SavedFile
from ..spec.file_tasks import MergeSpec
from .decomposition import Factors, decompose, rank_by_energy, rank_by_knee, rank_by_ratio
from .extraction import family_metadata, split
from .file_tasks import StopRequested


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


def merge_into(spec: MergeSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> MergeReport:
    """Write the sum of the spec's LoRAs into the folder of a run."""
    made = under_one_makers_names([read_lora(Path(lora.path)) for lora in spec.loras])
    files = [(file, lora) for each, lora in zip(made, spec.loras) for file in each.all()]
    tensors, ranks, energy, kept = {}, [], 0.0, 0.0

    def on_layer(done: int, total: int):
        if stop_requested():
            raise Cancelled
        emit(WorkingEvent(text="merging", done=done, total=total))

    for weight, before in merge(
            [file for file, _ in files], [lora.model for _, lora in files], [lora.text for _, lora in files],
            Resize(spec.rule, spec.rank, spec.threshold), on_layer):
        tensors |= low_rank_tensors(weight, spec.file_precision)
        ranks.append(len(weight.down))
        energy, kept = energy + before, kept + weight.change_norm() ** 2
    if not ranks:
        raise UserError("Nothing is left of these LoRAs at these strengths. Raise one.")
    path = folder / f"{spec.name}.safetensors"
    write_lora(path, tensors, merge_metadata(
        spec, [(each.file.name, each.file.metadata) for each in made], ranks, family_metadata(
            next((family for each in made if (family := family_of_lora(each.file.shapes(), each.file.metadata))), ""))))
    return MergeReport(
        files=(SavedFile.at("lora", path),), keys=len(tensors), layers=len(ranks), ranks=(min(ranks), max(ranks)),
        change_norm=kept**0.5, energy=energy, kept=kept / energy if energy else 1.0, precision=spec.file_precision,
        notes=(*(note for each in made for note in each.file.remarks()), *flat_note(file for file, _ in files)))


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
    change = sum((strength * layer.change() for layer, strength in parts), torch.zeros(()))
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
