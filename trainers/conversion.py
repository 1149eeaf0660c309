"""LoRA files under other names, in other precisions and with other metadata.

The names of a model's layers come from its checkpoint's header (`artifacts.lora_names`), not from guesses: kohya's names put
an underscore for every dot, and what was a dot is not to be seen in them.
"""
import re
from dataclasses import replace
from pathlib import Path
from typing import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .artifacts.lora import PRECISIONS, LoraWeight, scalar, write_lora
from .artifacts.lora_file import PARTS, FileLayer, LoraFile, read_lora
from .artifacts.lora_names import Layer, by_any_name, flat, layers
from .artifacts.lora_precision import low_rank_tensors, other_tensors
from .artifacts.metadata import KEPT
from .artifacts.tensor_files import DTYPES, finite_entries, write_entries
from .artifacts.tensor_header import read_header
from .errors import Cancelled, UserError
from .families.layouts import released_shapes, weights_of
from .merging import change_of, join
from .spec.file_tasks import ConvertSpec, MetadataSpec

NAMES = {"kohya": "kohya's", "diffusers": "diffusers'", "comfyui": "ComfyUI's own"}
FORGOTTEN_BUT = (*KEPT, "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_output_name",
                 "modelspec.title", "modelspec.author", "modelspec.description", "modelspec.license", "modelspec.tags",
                 "modelspec.trigger_phrase", "modelspec.usage_hint", "modelspec.thumbnail", "format")
"""What stays in the header when the training is forgotten."""


def convert(spec: ConvertSpec, folder: Path, emit, stop_requested) -> dict:
    """Write the file anew; returns the report with "error", the relative error of what the file changes."""
    file, path = read_lora(Path(spec.lora)), folder / f"{spec.name}.safetensors"
    renamed = file
    if spec.names != "same":
        emit("phase", text="looking up the names of the layers")
        renamed = under_names(file, spec.names, table_for(file, spec.base))
    form = spec.names if spec.names != "same" else style(file)
    tensors, error, energy = {}, 0.0, 0.0
    for done, layer in enumerate(renamed.layers.values(), start=1):
        if stop_requested():
            raise Cancelled
        emit("working", text="converting", done=done, total=len(renamed.layers))
        written = converted(layer, form, spec.file_precision)
        for name, tensor in written.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                raise UserError(f"{name} holds values too large for {spec.file_precision}. Choose bf16 or fp32.")
        tensors |= written
        if layer.is_low_rank:
            before, after = change_of(layer.low_rank()), change_of(stored_weight(layer.key, written))
            error += float((before - after).square().sum(dtype=torch.float64))
            energy += float(before.square().sum(dtype=torch.float64))
    metadata = {name: value for name, value in file.metadata.items() if name != "lora_adapter_metadata"}
    size = write_lora(path, tensors, metadata)
    return {
        "files": [{"kind": "lora", "name": path.name, "bytes": size}], "bytes": size,
        "keys": len(tensors), "layers": len(renamed.layers), "names": form, "precision": spec.file_precision,
        "family": family_of_lora(file),
        "before": Path(spec.lora).stat().st_size,
        "error": (error / energy) ** 0.5 if energy else 0.0, "change_norm": energy**0.5,
        "notes": [f"{len(file.unknown)} tensors that are no part of a LoRA were left out, for example {file.unknown[0]}"]
        if file.unknown else [],
    }


def converted(layer: FileLayer, form: str, precision: str) -> dict[str, Tensor]:
    """The layer's tensors for the file. Where its precision stays, kohya's and ComfyUI's are bit for bit those it had."""
    if form == "diffusers":
        return _for_diffusers(layer, precision)
    if precision == "same":
        return {f"{layer.key}{_suffix(role)}": tensor if role == "dora_scale" else
                scalar(float(tensor), layer.dtype if layer.dtype.itemsize > 1 else torch.float32) if role == "alpha" else
                tensor.to(layer.dtype).contiguous() for role, tensor in _with_alpha(layer).items()}
    if layer.is_low_rank:
        return low_rank_tensors(_in_full(layer), precision)
    if precision not in PRECISIONS:
        raise UserError(f"{layer.key} is no plain LoRA layer, and its other factors cannot be stored in {precision}. Choose "
                        "fp16, or resize the LoRA first, which makes plain layers.")
    return other_tensors({f"{layer.key}{_suffix(role)}": tensor for role, tensor in _with_alpha(layer).items()}, precision)


def _with_alpha(layer: FileLayer) -> dict[str, Tensor]:
    """With the alpha that the file keeps in its metadata, which ComfyUI does not read."""
    beside = {} if layer.alpha_beside is None else {"alpha": torch.tensor(layer.alpha_beside)}
    return {**layer.tensors(), **beside}


def _suffix(role: str) -> str:
    return f".{PARTS.get(role, role)}"


def _in_full(layer: FileLayer) -> LoraWeight:
    """Factors out of eight bits take their scales back from alpha."""
    weight = layer.low_rank()
    return join(layer.key, [(weight, 1.0)]) if layer.dtype.itemsize == 1 else weight


def _for_diffusers(layer: FileLayer, precision: str) -> dict[str, Tensor]:
    """peft's files have no alpha tensors: the scale goes into `up`, exactly where it is a power of two."""
    if not layer.is_low_rank:
        raise UserError(f"{layer.key} is no plain LoRA layer, and diffusers reads no others. Choose kohya's names, or "
                        "resize the LoRA first, which makes plain layers.")
    if precision in ("fp8", "int8") or precision == "same" and layer.dtype.itemsize == 1:
        raise UserError("Files in fp8 and int8 keep their scales in alpha, for which diffusers' names have no place. Choose "
                        "kohya's names, or fp16.")
    weight, dtype = _in_full(layer), layer.dtype if precision == "same" else PRECISIONS[precision]
    up = weight.up * (weight.alpha / len(weight.down))
    return {f"{layer.key}.lora_A.weight": weight.down.to(dtype).contiguous(),
            f"{layer.key}.lora_B.weight": up.to(dtype).contiguous()}


def stored_weight(key: str, tensors: Mapping[str, Tensor]) -> LoraWeight:
    """What was written of a plain layer, as a loader will read it."""
    named = {name.removeprefix(key): tensor.float() for name, tensor in tensors.items()}
    down = named.get(".lora_down.weight", named.get(".lora_A.weight"))
    up = named.get(".lora_up.weight", named.get(".lora_B.weight"))
    return LoraWeight(key, down, up, float(named.get(".alpha", len(down))))


# ---- names ---------------------------------------------------------------------------------------------------------

def style(file: LoraFile) -> str:
    """Whose names a file carries: "kohya", "diffusers" or "comfyui"."""
    key = next(iter(file.layers))
    if key.startswith(("diffusion_model.", "text_encoders.")):
        return "comfyui"
    return "kohya" if key.startswith(("lora_", "lycoris_")) else "diffusers"


def family_of_lora(file: LoraFile) -> str:
    """"sd1", "sd2", "sdxl" or "other", from the metadata and from names that only one family has."""
    version, keys = file.metadata.get("ss_base_model_version", "").lower(), [flat(key) for key in file.layers]
    if any(re.search(r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks", key) for key in keys):
        return "other"
    if version.startswith("sdxl") or any(re.search(
            r"lora_te2_|text_encoder_2_|clip_g_|^lora_unet_input_blocks|_transformer_blocks_[1-9]", key) for key in keys):
        return "sdxl"
    # SD 2.x has the UNet of SD 1.x by name, and a text encoder of 23 layers instead of 12.
    return "sd2" if any(re.search(r"text_model_encoder_layers_(1[2-9]|2\d)_", key) for key in keys) else "sd1"


def table_for(file: LoraFile, base: str = "") -> dict[str, Layer]:
    """Every layer of the model that a LoRA is for, under all names that files give it."""
    if base:
        return by_any_name(layers(weights_of(Path(base)).shapes()))
    family = family_of_lora(file)
    if family == "other":
        raise UserError(f"{file.name!r} is for a transformer, whose layers' names are read from the model itself. Choose "
                        "it as base.")
    return by_any_name(layers(released_shapes(family)))


def under_names(file: LoraFile, names: str, table: Mapping[str, Layer]) -> LoraFile:
    """The same file with its layers called otherwise. Raises UserError for layers that the model does not have."""
    unknown = [key for key in file.layers if flat(key) not in table]
    if unknown:
        raise UserError(f"{len(unknown)} of {len(file.layers)} layers of {file.name!r}, for example {unknown[0]}, are not "
                        "in the model that its names are taken from. Choose the model that the LoRA was made for as base.")
    called = {"kohya": lambda layer: layer.key, "diffusers": lambda layer: layer.diffusers,
              "comfyui": lambda layer: layer.native}[names]
    found = {}
    for key, layer in file.layers.items():
        name = called(table[flat(key)])
        if not name:
            raise UserError(f"{NAMES[names]} names for models of this family cut layers otherwise ({key}). Choose other "
                            "names.")
        found[name] = replace(layer, key=name)
    return replace(file, layers=found)


def under_the_same_names(files: Sequence[LoraFile]) -> list[LoraFile]:
    """Files of different makers under kohya's names; files that agree stay as they are."""
    if len({style(file) for file in files}) == 1 and len({_of_original_names(file.layers) for file in files}) == 1:
        return list(files)
    families = {family_of_lora(file) for file in files}
    table = table_for(next((file for file in files if family_of_lora(file) == "sdxl"), files[0]))
    if len(families - {"sd1", "sd2"}) + bool(families & {"sd1", "sd2"}) > 1:
        raise UserError("The LoRAs are for different model families and cannot be merged.")
    return [under_names(file, "kohya", table) for file in files]


def _of_original_names(keys: Iterable[str]) -> bool:
    """SDXL's layers go by original names and by diffusers'."""
    return any("input_blocks" in key or "output_blocks" in key for key in keys)


# ---- metadata ------------------------------------------------------------------------------------------------------

def edit_metadata(spec: MetadataSpec, folder: Path, emit, stop_requested) -> dict:
    """Write the same tensors under another header; returns the report with "metadata", as it is then."""
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
    emit("phase", text="writing the file")
    size = write_entries(path, finite_entries(source).values(), metadata)
    return {"files": [{"kind": "lora", "name": path.name, "bytes": size}], "bytes": size, "keys": len(header), "notes": [],
            "metadata": read_header(path)[1]}
