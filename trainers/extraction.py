"""A LoRA out of two models: what a tuned checkpoint changed, in low rank, one layer at a time.

The difference of every layer is decomposed (`decomposition`), cut to the rank that the rule asks for, and checked: how
much of its energy the file keeps is known for every layer, in the precision of the file.
"""
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .artifacts.lora import PRECISIONS, LoraWeight, save_lora
from .artifacts.lora_names import Layer, family_of, layers
from .artifacts.tensor_file import TensorFile
from .decomposition import Factors, decompose, rank_by_energy, rank_by_knee, rank_by_ratio
from .errors import Cancelled, UserError
from .families.recognition import read_header
from .spec import Part

SAME = 1e-6
"""Differences below this share of the base's norm are rounding of the files, not training."""


class ExtractionSpec(Part):
    """`rule` picks the rank of each layer, at most `rank`: "fixed" takes `rank` itself; "energy" the smallest that keeps
    `threshold` of the squared norm; "ratio" the singular values above 1 / `threshold` of the largest; "knee" the point
    where their curve bends."""

    tuned: str
    base: str
    name: str = "extracted"
    rule: Literal["fixed", "energy", "ratio", "knee"] = "fixed"
    rank: int = Field(32, ge=1, le=1024)
    convolution_rank: int = Field(0, ge=0, le=1024)
    """Cap for 3×3 convolutions; 0: `rank`."""
    threshold: float = Field(0.9, gt=0, le=10_000)
    convolutions: bool = True
    text_encoders: bool = True
    clamp: float = Field(1.0, gt=0, le=1)
    """Quantile at which the factors' outliers are cut off; 1: none (kohya uses 0.99)."""
    exact: bool = False
    file_precision: Literal["fp32", "fp16", "bf16"] = "fp16"
    device: str = "cpu"

    @model_validator(mode="after")
    def _threshold_fits(self):
        if self.rule == "energy" and self.threshold > 1:
            raise ValueError(f"threshold is {self.threshold:g}, but with the rule \"energy\" it is a share, at most 1; "
                             "0.9 keeps nine tenths")
        if self.rule == "ratio" and self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold:g}, but with the rule \"ratio\" it is how many times smaller "
                             "than the largest a value may be; 10 is usual")
        return self


@dataclass(frozen=True)
class ExtractedLayer:
    """One row of the report. `kept` is the share of the change's energy in the factors, by precision of the file."""

    key: str
    block: str
    rank: int
    energy: float
    kept: dict[str, float]
    bytes: int


def extract(spec: ExtractionSpec, path: Path, emit: Callable[..., None] = lambda event, **fields: None,
            stop_requested: Callable[[], bool] = lambda: False, metadata: dict[str, str] | None = None) -> dict:
    """Write the LoRA to `path`; returns the report: layers as dicts, what was left out, totals.

    Raises UserError for a pair that does not belong together or does not differ, Cancelled when asked to stop; then no
    file is left.
    """
    tuned_path, base_path = Path(spec.tuned), Path(spec.base)
    with TensorFile(tuned_path, *read_header(tuned_path)) as tuned, TensorFile(base_path, *read_header(base_path)) as base:
        pairs, left_out = pair(tuned, base)
        rows, weights, changed = [], [], 0.0
        for done, layer in enumerate(pairs, start=1):
            if stop_requested():
                raise Cancelled
            emit("extracting", done=done, total=len(pairs), layer=layer.key)
            if not wanted(spec, layer, tuned.shape(layer.tensor)):
                continue
            weight, row = extract_layer(spec, layer, tuned, base)
            changed += row.energy
            if weight is not None:
                weights.append(weight)
                rows.append(row)
    if not weights:
        raise UserError(f"{tuned_path.name!r} and {base_path.name!r} do not differ in any layer that was asked for: there "
                        "is nothing to extract. Choose the tuned model first and the model it was tuned from second.")
    facts = save_lora(path, weights, spec.file_precision, metadata or {})
    return {**facts, "rows": [asdict(row) for row in rows], "left_out": left_out, "energy": changed,
            "kept": {precision: sum(row.energy * row.kept[precision] for row in rows) / changed for precision in PRECISIONS}}


def pair(tuned: TensorFile, base: TensorFile) -> tuple[list[Layer], list[str]]:
    """The layers that both files have, and the names of tensors that a LoRA cannot hold or that only one has."""
    for file in (tuned, base):
        try:
            family_of(file)
        except UserError as problem:
            raise UserError(f"{file.path.name!r}: {problem}.") from None
    if family_of(tuned) != family_of(base):
        raise UserError(f"{tuned.path.name!r} and {base.path.name!r} are of different model families "
                        f"({family_of(tuned)} and {family_of(base)}). Choose the model that the tuned one descends from.")
    found = [layer for layer in layers({name: tuned.shape(name) for name in tuned}) if layer.tensor in base]
    for layer in found:
        if tuned.shape(layer.tensor) != base.shape(layer.tensor):
            raise UserError(f"{tuned.path.name!r} and {base.path.name!r} differ in the shape of {layer.tensor} "
                            f"({list(tuned.shape(layer.tensor))} and {list(base.shape(layer.tensor))}): they are not of the "
                            "same model. Choose the model that the tuned one descends from.")
    if not found:
        raise UserError(f"{tuned.path.name!r} and {base.path.name!r} have no layer in common. Choose the model that the "
                        "tuned one descends from.")
    covered = {layer.tensor for layer in found}
    return found, [name for name in tuned if name not in covered]


def wanted(spec: ExtractionSpec, layer: Layer, shape: tuple[int, ...]) -> bool:
    if layer.block == "text" and not spec.text_encoders:
        return False
    return spec.convolutions or not is_convolution(shape)


def is_convolution(shape: tuple[int, ...]) -> bool:
    """3×3; a 1×1 convolution is a linear layer."""
    return len(shape) == 4 and shape[2:] != (1, 1)


def extract_layer(spec: ExtractionSpec, layer: Layer, tuned: TensorFile,
                  base: TensorFile) -> tuple[LoraWeight | None, ExtractedLayer]:
    """The factors of one layer, or None where nothing changed."""
    original = base.weight(layer.tensor)
    change = (tuned.weight(layer.tensor) - original).to(spec.device)
    change, original = (each.chunk(layer.parts)[layer.part] for each in (change, original))
    shape = tuple(change.shape)
    matrix = change.flatten(1)
    if not torch.isfinite(matrix).all():
        raise UserError(f"{layer.tensor} holds values that are not numbers, in {tuned.path.name!r} or {base.path.name!r}. "
                        "The file is damaged, or its training broke; choose another.")
    if float(matrix.norm()) <= SAME * float(original.norm()):
        return None, ExtractedLayer(layer.key, layer.block, 0, 0.0, {}, 0)
    cap = (spec.convolution_rank or spec.rank) if is_convolution(shape) else spec.rank
    factors = decompose(matrix, cap, spec.exact)
    factors = factors.first(chosen_rank(spec, factors))
    down, up = split(factors, shape, spec.clamp)
    rank = len(factors.values)
    kept = {precision: kept_in(precision, matrix, down, up, factors.energy) for precision in PRECISIONS}
    weight = LoraWeight(layer.key, down.cpu(), up.cpu(), float(rank))
    size = (down.numel() + up.numel()) * PRECISIONS[spec.file_precision].itemsize
    return weight, ExtractedLayer(layer.key, layer.block, rank, factors.energy, kept, size)


def chosen_rank(spec: ExtractionSpec, factors: Factors) -> int:
    if spec.rule == "energy":
        return rank_by_energy(factors, spec.threshold)
    if spec.rule == "ratio":
        return rank_by_ratio(factors, spec.threshold)
    return rank_by_knee(factors) if spec.rule == "knee" else len(factors.values)


def split(factors: Factors, shape: tuple[int, ...], clamp: float) -> tuple[Tensor, Tensor]:
    """down [rank, in, …] and up [out, rank, …], the values shared evenly between them so that neither is large."""
    root = factors.values.sqrt()
    down, up = root[:, None] * factors.right, factors.left * root
    if clamp < 1:
        down, up = (each.clamp(-limit, limit) for each in (down, up) for limit in [_quantile(each.abs(), clamp)])
    return down.reshape(len(root), *shape[1:]), up.reshape(shape[0], len(root), *[1] * (len(shape) - 2))


def _quantile(values: Tensor, share: float) -> float:
    ordered = values.flatten().sort().values
    return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])


def kept_in(precision: str, matrix: Tensor, down: Tensor, up: Tensor, energy: float) -> float:
    """Share of the energy that the factors keep once rounded: 1 - ‖D - up·down‖² / ‖D‖², without forming the product."""
    dtype = PRECISIONS[precision]
    down, up = (each.to(dtype).to(torch.float32).flatten(1) for each in (down, up))
    inner = float(((up.T @ matrix) * down).double().sum())
    square = float(((up.T @ up) * (down @ down.T)).double().sum())
    return (2 * inner - square) / energy
