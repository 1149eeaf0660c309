"""LoRA files under other names (`artifacts.layer_names`), in other precisions and with other metadata."""
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..artifacts.adapters.format import scalar
from ..artifacts.adapters.lora import LoraWeight
from ..artifacts.changes import rank_of
from ..artifacts.layer_names import LayerNames, family_names
from ..artifacts.layer_names.parts import ALPHA, DORA
from ..artifacts.lora import PRECISIONS, write_lora
from ..artifacts.lora_file import FileLayer, LoraFile, read_lora
from ..artifacts.lora_precision import low_rank_tensors, other_tensors
from ..artifacts.lora_renaming import Renamed, describe, family_of, maker_of, names_for, renamed
from ..artifacts.metadata import KEPT, converted_metadata
from ..artifacts.tensor_files import DTYPES, finite_entries, write_entries
from ..artifacts.tensor_header import read_header
from ..errors import Cancelled, UserError
from ..events import Emit, PhaseEvent, WorkingEvent
from ..families.unet_state_dict import weights_of
from ..reports import ConversionReport, MetadataReport, SavedFile
from ..spec.file_tasks import ConvertSpec, MetadataSpec
from .file_tasks import StopRequested
from .merging import Resize, change_of, join, merged_layer

FORGOTTEN_BUT = (*KEPT, "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_output_name",
                 "modelspec.title", "modelspec.author", "modelspec.description", "modelspec.license", "modelspec.tags",
                 "modelspec.trigger_phrase", "modelspec.usage_hint", "modelspec.thumbnail", "format")
"""What stays in the header when the training is forgotten."""


def convert(spec: ConvertSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> ConversionReport:
    """Write the file anew."""
    file, path = read_lora(Path(spec.lora)), folder / f"{spec.name}.safetensors"
    form = spec.names if spec.names != "same" else maker_of(file.layers)
    if spec.names != "same":
        emit(PhaseEvent(text="looking up the names of the layers", stage="naming"))
    made = in_form(file, spec.names, spec.base)
    tensors, error, energy = {}, 0.0, 0.0
    for done, layer in enumerate(made.file.layers.values(), start=1):
        if stop_requested():
            raise Cancelled
        emit(WorkingEvent(text="converting", done=done, total=len(made.file.layers)))
        parts = [each.layers[layer.key] for each in made.all() if layer.key in each.layers]
        if spec.names == "kohya":
            layer = layer.with_alpha()
        written = converted(layer, form, spec.file_precision) if len(parts) == 1 else _sum(parts, form, spec.file_precision)
        for name, tensor in written.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                raise UserError(f"{name} holds values too large for {spec.file_precision}. Choose bf16 or fp32.")
        tensors |= written
        if all(part.is_low_rank for part in parts):
            before = sum((change_of(part.low_rank()).flatten(1) for part in parts), torch.zeros(()))
            after = change_of(stored_weight(layer.key, written)).flatten(1)
            error += float((before - after).square().sum(dtype=torch.float64))
            energy += float(before.square().sum(dtype=torch.float64))
    ranks = [rank for layer in made.file.layers.values() if (rank := rank_of(layer.shapes()))]
    plain = all(layer.is_low_rank for layer in made.file.layers.values())
    write_lora(path, tensors, converted_metadata(file.metadata, form, spec.name, max(ranks, default=0), plain))
    return ConversionReport(
        files=(SavedFile.at("lora", path),), keys=len(tensors), layers=len(made.file.layers), names=form,
        precision=spec.file_precision, family=family_of(file) or "other", before=Path(spec.lora).stat().st_size,
        error=(error / energy) ** 0.5 if energy else 0.0, change_norm=energy**0.5, notes=tuple(made.file.remarks()))


def in_form(file: LoraFile, names: str, base: str = "") -> Renamed:
    """The file under the names asked for: those of the `base` model, else of its family. "same" keeps kohya's and ComfyUI's
    names as they are; those of diffusers, who has had several, become today's."""
    if base and names != "same":
        model = weights_of(Path(base))
        return renamed(file, _with_text(LayerNames.of_checkpoint(model.shapes())), names, repr(model.title))
    table = names_for([file]) if names != "same" or maker_of(file.layers) == "diffusers" else None
    if table:
        return renamed(file, table, "diffusers" if names == "same" else names)
    if names != "same":
        raise UserError(f"{file.name!r} is {describe(file)}; such names are read from the model itself. Choose it as base.")
    return Renamed(file)


def _with_text(model: LayerNames) -> LayerNames:
    """With the family's text encoders where the model's lie in files of their own."""
    released = family_names(model.family)
    if released is None or any(layer.is_text for layer in model.layers):
        return model
    return LayerNames.of(model.family, [*model.layers, *(layer for layer in released.layers if layer.is_text)])


def converted(layer: FileLayer, form: str, precision: str) -> dict[str, Tensor]:
    """The layer's tensors for the file. Where its precision stays, kohya's and ComfyUI's are bit for bit those it had."""
    if form == "diffusers":
        return _for_diffusers(layer, precision)
    if precision == "same":
        return {f"{layer.key}.{part}": tensor if part == DORA else
                scalar(float(tensor), layer.dtype if layer.dtype.itemsize > 1 else torch.float32) if part == ALPHA else
                tensor.to(layer.dtype).contiguous() for part, tensor in layer.tensors().items()}
    if layer.is_low_rank:
        return low_rank_tensors(_in_full(layer), precision)
    if precision not in PRECISIONS:
        raise UserError(f"{layer.key} is no plain LoRA layer, and its other factors cannot be stored in {precision}. Choose "
                        "fp16, or resize the LoRA first, which makes plain layers.")
    return other_tensors({f"{layer.key}.{part}": tensor for part, tensor in layer.tensors().items()}, precision)


def _sum(parts: Sequence[FileLayer], form: str, precision: str) -> dict[str, Tensor]:
    """A layer that a file spells in several ways acts with the sum of them."""
    dtype = parts[0].dtype if parts[0].dtype.itemsize > 1 else torch.float16
    weight = merged_layer(parts[0].key, [(part, 1.0) for part in parts], Resize()).weight
    if form == "diffusers":
        return _diffusers_tensors(weight, _diffusers_dtype(precision, dtype))
    return weight.tensors(dtype) if precision == "same" else low_rank_tensors(weight, precision)


def _in_full(layer: FileLayer) -> LoraWeight:
    """Factors out of eight bits take their scales back from alpha."""
    weight = layer.low_rank()
    return join(layer.key, [(weight, 1.0)]) if layer.dtype.itemsize == 1 else weight


def _for_diffusers(layer: FileLayer, precision: str) -> dict[str, Tensor]:
    """peft's files have no alpha tensors: the scale goes into `up`, exactly where it is a power of two."""
    if not layer.is_low_rank:
        raise UserError(f"{layer.key} is no plain LoRA layer, and diffusers reads no others. Choose kohya's names, or "
                        "resize the LoRA first, which makes plain layers.")
    return _diffusers_tensors(_in_full(layer), _diffusers_dtype(precision, layer.dtype))


def _diffusers_dtype(precision: str, own: torch.dtype) -> torch.dtype:
    if precision in ("fp8", "int8") or (precision == "same" and own.itemsize == 1):
        raise UserError("Files in fp8 and int8 keep their scales in alpha, for which diffusers' names have no place. Choose "
                        "kohya's names, or fp16.")
    return own if precision == "same" else PRECISIONS[precision]


def _diffusers_tensors(weight: LoraWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    up = weight.up * (weight.alpha / len(weight.down))
    return {f"{weight.key}.lora_A.weight": weight.down.to(dtype).contiguous(),
            f"{weight.key}.lora_B.weight": up.to(dtype).contiguous()}


def stored_weight(key: str, tensors: Mapping[str, Tensor]) -> LoraWeight:
    """What was written of a plain layer, as a loader will read it."""
    named = {name.removeprefix(key): tensor.float() for name, tensor in tensors.items()}
    names = (".lora_A.weight", ".lora_B.weight") if ".lora_A.weight" in named else (".lora_down.weight", ".lora_up.weight")
    down, up = (named[name] for name in names)
    return LoraWeight(key, down, up, float(named.get(".alpha", len(down))))


# ---- metadata ------------------------------------------------------------------------------------------------------

def edit_metadata(spec: MetadataSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> MetadataReport:
    """Write the same tensors under another header."""
    source, path = Path(spec.lora), folder / f"{spec.name}.safetensors"
    header, metadata = read_header(source)
    if spec.forget_training:
        metadata = {name: value for name, value in metadata.items() if name in FORGOTTEN_BUT}
    for name, value in spec.changes:
        metadata.pop(name, None)
        if value:
            metadata[name] = value
    unreadable = sorted({facts["dtype"] for facts in header.values()} - DTYPES.keys())
    if unreadable:
        raise UserError(f"{source.name!r} holds tensors of type {unreadable[0]}, which are not read. Choose another file.")
    emit(PhaseEvent(text="writing the file", stage="writing"))
    write_entries(path, finite_entries(source).values(), metadata)
    return MetadataReport(files=(SavedFile.at("lora", path),), keys=len(header), metadata=read_header(path)[1])
