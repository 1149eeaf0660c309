"""A LoRA out of two models: what a tuned checkpoint changed, in low rank, one layer at a time.

The difference of every layer is decomposed (`decomposition`), cut to the rank that the rule asks for, and checked: how
much of its energy the file keeps is known for every layer, in the precision of the file.
"""
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from .. import families
from ..artifacts.adapters.lora import LoraWeight
from ..artifacts.layer_names import Layer, family_of_model, layers_of_checkpoint
from ..artifacts.layer_names.family import TITLES
from ..artifacts.layer_names.table import OTHER_PARTS
from ..artifacts.lora import PRECISIONS, write_lora
from ..artifacts.metadata import extraction_metadata
from ..artifacts.rounding import is_rounded, rounding_between
from ..artifacts.tensor_files import Entry
from ..artifacts.weights import Weights
from ..drawing import extraction_report
from ..errors import Cancelled, UserError, reason_of
from ..events import Emit, WorkingEvent, silent
from ..families.recognition import prediction_type_of
from ..families.unet_state_dict import weights_of
from ..reports import ExtractedLayer, ExtractionReport, SavedFile
from ..spec.file_tasks import ExtractionSpec
from .decomposition import Factors, decompose, rank_by_energy, rank_by_knee, rank_by_ratio, squared_norm
from .file_tasks import StopRequested

SAME = 1e-6
"""Differences below this fraction of the base's norm are rounding of the files, not training."""


def extract_into(spec: ExtractionSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> ExtractionReport:
    """`extract` into the folder of a run, with a page of what the LoRA keeps beside it."""
    report = extract(spec, folder / f"{spec.name}.safetensors", emit, stop_requested)
    extraction_report.draw(report).save(folder / extraction_report.FILE)
    return report


def extract(spec: ExtractionSpec, path: Path, emit: Emit = silent,
            stop_requested: StopRequested = lambda: False) -> ExtractionReport:
    """Write the LoRA to `path`.

    Raises UserError for a pair that does not belong together or does not differ, Cancelled when asked to stop; then no
    file is left.
    """
    tuned = weights_of(Path(spec.tuned), spec.tuned_name)
    base = weights_of(Path(spec.base), spec.base_name)
    pairs, left_out = pair(tuned, base)
    device, rows, tensors, unchanged, rounded = torch_device(spec.device), [], {}, 0, {}
    for done, (layer, theirs) in enumerate(pairs, start=1):
        if stop_requested():
            raise Cancelled
        emit(WorkingEvent(text="extracting", done=done, total=len(pairs)))
        if not wanted(spec, layer, tuned.shape(layer.tensor)):
            continue
        change = change_of_layer(tuned, layer, base, theirs)
        if not isinstance(change, Tensor):
            unchanged += 1
            if change:
                rounded.setdefault(change, []).append(layer.key)
            continue
        weight, row = extract_layer(spec, layer, change.to(device))
        # In the file's precision at once: all factors together are as large as the file.
        tensors |= weight.tensors(PRECISIONS[spec.file_precision])
        rows.append(row)
    if not rows:
        by = f" by more than rounding to {' and '.join(rounded)}" if rounded else ""
        raise UserError(f"{tuned.title!r} and {base.title!r} do not differ in any layer that was asked for{by}: there is "
                        "nothing to extract. Choose the tuned model first and the model it was tuned from second.")
    family = family_of_model(tuned)
    ranks, outside = [row.rank for row in rows], change_outside(tuned, base, left_out)
    write_lora(path, tensors, extraction_metadata(spec, family_metadata(family), tuned.title, base.title, ranks))
    energy = sum(row.energy for row in rows)
    return ExtractionReport(
        files=(SavedFile.at("lora", path),), keys=len(tensors), layers=len(rows), unchanged=unchanged, family=family,
        tuned=tuned.title, base=base.title, precision=spec.file_precision, rows=tuple(rows), change_norm=energy**0.5,
        left_out=len(left_out), left_out_energy=outside,
        notes=(*prediction_note(spec, tuned, base), *rounding_notes(rounded),
               *(note for file in (tuned, base) for note in eight_bit_note(file))),
        kept={precision: sum(row.energy * row.kept[precision] for row in rows) / energy for precision in PRECISIONS})


def family_metadata(family: str) -> Mapping[str, str]:
    return families.get(family).metadata if family in families.FAMILIES else {}


def title_of(family: str) -> str:
    return TITLES.get(family, "a transformer")


def torch_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as problem:
        raise UserError(f"The device {name!r} cannot be used here: {reason_of(problem)}. Choose auto or cpu.") from None


def pair(tuned: Weights, base: Weights) -> tuple[list[tuple[Layer, Layer]], list[str]]:
    """The layers that both files have, each as (in tuned, in base), and the names of tuned's tensors that belong to none of
    them: biases, norms, embeddings, the VAE."""
    for file in (tuned, base):
        try:
            family_of_model(file)
        except UserError as problem:
            raise UserError(f"{file.title!r}: {problem}.") from None
    families = [family_of_model(file) for file in (tuned, base)]
    if families[0] != families[1]:
        raise UserError(f"{tuned.title!r} and {base.title!r} are of different model families ({title_of(families[0])} and "
                        f"{title_of(families[1])}). Choose the model that the tuned one descends from.")
    own, other = ({layer.native or layer.key: layer for layer in layers_of_checkpoint(file.shapes())
                   if not layer.transposed} for file in (tuned, base))
    found = [(layer, other[name]) for name, layer in own.items() if name in other]
    for layer, theirs in found:
        if tuned.shape(layer.tensor) != base.shape(theirs.tensor):
            raise UserError(f"{tuned.title!r} and {base.title!r} differ in the shape of {layer.tensor} "
                            f"({list(tuned.shape(layer.tensor))} and {list(base.shape(theirs.tensor))}): they are not of "
                            "the same model. Choose the model that the tuned one descends from.")
    if not found:
        raise UserError(f"{tuned.title!r} and {base.title!r} have no layer in common. Choose the model that the tuned one "
                        "descends from.")
    covered = {layer.tensor for layer, _ in found}
    return found, [name for name in tuned if name not in covered]


def wanted(spec: ExtractionSpec, layer: Layer, shape: tuple[int, ...]) -> bool:
    if layer.is_text and not spec.text_encoders:
        return False
    return spec.convolutions or not is_convolution(shape)


def is_convolution(shape: tuple[int, ...]) -> bool:
    """3×3; a 1×1 convolution is a linear layer."""
    return len(shape) == 4 and shape[2:] != (1, 1)


def change_of_layer(tuned: Weights, layer: Layer, base: Weights, theirs: Layer) -> Tensor | str | None:
    """The difference of one layer, float32 [out, in, …]; None where there is none, and the name of a number format where
    the files differ by no more than rounding to it."""
    changed, original = (file.weight(place.tensor).chunk(place.parts)[place.part]
                         for file, place in ((tuned, layer), (base, theirs)))
    dtypes = [tuned.entries[layer.tensor].dtype, base.entries[theirs.tensor].dtype]
    if dtypes[0] != dtypes[1] and all(dtype.is_floating_point for dtype in dtypes):
        coarser = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        if torch.equal(changed.to(coarser).float(), original.to(coarser).float()):
            return None
    entries = tuned.entries[layer.tensor], base.entries[theirs.tensor]
    if rounded_to := scaled_rounding(changed, original, entries, layer) or rounding_between(changed, original, dtypes):
        return rounded_to
    copied = dtypes[0] != torch.float32  # else the tensor may be the model's own
    change = changed.sub_(original) if copied else changed - original
    size = float(change.norm())
    if not isfinite(size):
        raise UserError(f"{layer.tensor} is so large in {tuned.title!r} or {base.title!r} that its change cannot be "
                        "computed. The file is damaged; choose another.")
    return change if size > SAME * float(original.norm()) else None


def scaled_rounding(changed: Tensor, original: Tensor, entries: Sequence[Entry], layer: Layer) -> str | None:
    """The same for a layer that one of the files keeps with a scale: in units of the scale it is rounded to eight bits."""
    for entry, rounded, whole in ((entries[0], changed, original), (entries[1], original, changed)):
        if entry.scale and entry.stored and entry.stored.is_floating_point:
            scale = entry.scale()
            scale = scale.chunk(layer.parts)[layer.part] if len(scale) > 1 else scale
            if is_rounded(rounded / scale, whole / scale, entry.stored):
                return "scaled fp8"
    return None


def change_outside(tuned: Weights, base: Weights, names: Iterable[str]) -> float:
    """Squared norm of what changed in biases, norms and embeddings, which a LoRA does not hold."""
    return sum(_squared_change(tuned, base, name) for name in names
               if name in base and tuned.shape(name) == base.shape(name) and tuned.entries[name].dtype.is_floating_point
               and not name.startswith(OTHER_PARTS))


def _squared_change(tuned: Weights, base: Weights, name: str) -> float:
    changed, original = tuned.weight(name), base.weight(name)
    if rounding_between(changed, original, (tuned.entries[name].dtype, base.entries[name].dtype)):
        return 0.0
    return squared_norm(torch.atleast_2d(changed - original).flatten(1))


def rounding_notes(rounded: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{len(keys)} layers, for example {keys[0]}, differ by no more than rounding to {name}; they count as unchanged"
            for name, keys in rounded.items()]


def prediction_note(spec: ExtractionSpec, tuned: Weights, base: Weights) -> list[str]:
    """Where two models predict different things, most of their difference is that one."""
    objectives = [prediction_type_of(Path(path)) for path in (spec.tuned, spec.base)]
    if objectives[0] == objectives[1]:
        return []
    said = [{"epsilon": "noise (epsilon)", "v_prediction": "v"}.get(each, each) for each in objectives]
    return [f"{tuned.title} predicts {said[0]}, and {base.title} predicts {said[1]}: the LoRA holds this difference too, "
            f"and makes {base.title} predict {said[0]}. Sample with ModelSamplingDiscrete set to that, or extract from a "
            "base that predicts the same"]


def eight_bit_note(file: Weights) -> list[str]:
    if any(entry.eight_bit for entry in file.entries.values()):
        return [f"{file.title} is stored in eight bits, and its rounding, about 3 % of every weight, counts as change. "
                "Extract from the fp16 file if there is one"]
    return []


def extract_layer(spec: ExtractionSpec, layer: Layer, change: Tensor) -> tuple[LoraWeight, ExtractedLayer]:
    """The factors of one layer, on the device of its change."""
    shape, matrix = tuple(change.shape), change.flatten(1)
    cap = (spec.convolution_rank or spec.rank) if is_convolution(shape) else spec.rank
    factors = decompose(matrix, cap, spec.exact)
    factors = factors.first(chosen_rank(spec, factors))
    down, up = split(factors, shape, spec.clamp)
    rank = len(factors.values)
    clamped = matrix if spec.clamp < 1 else None
    kept = {precision: kept_in(precision, factors, down, up, clamped) for precision in PRECISIONS}
    weight = LoraWeight(layer.key, down, up, float(rank))
    size = (down.numel() + up.numel()) * PRECISIONS[spec.file_precision].itemsize
    return weight, ExtractedLayer(key=layer.key, block=layer.block, rank=rank, energy=factors.energy, kept=kept, bytes=size)


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


def _quantile(values: Tensor, fraction: float) -> float:
    ordered = values.flatten().sort().values
    return float(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))])


def kept_in(precision: str, factors: Factors, down: Tensor, up: Tensor, matrix: Tensor | None = None) -> float:
    """Fraction of the energy that the factors keep once rounded: 1 - ‖D - up·down‖² / ‖D‖², without forming the product.

    Without the whole `matrix` D, only what the factors hold of it is compared. Rounding alone turns them by so little that
    what they then catch of the rest is below a millionth of it; clamping may turn them by more.
    """
    dtype = PRECISIONS[precision]
    down, up = (each.to(dtype).to(torch.float32).flatten(1) for each in (down, up))
    if matrix is None:
        inner = float((((up.T @ factors.left) * factors.values) * (down @ factors.right.T)).double().sum())
    else:
        inner = float(((up.T @ matrix) * down).double().sum())
    square = float(((up.T @ up) * (down @ down.T)).double().sum())
    return (2 * inner - square) / factors.energy
