"""LoRAs worked into a checkpoint, and checkpoints cut into shards or joined: one tensor in memory at a time."""
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from .. import families
from ..artifacts.checkpoint import PRECISIONS, in_precision, save_checkpoint
from ..artifacts.layer_names import Layer, LayerNames, is_text
from ..artifacts.lora_file import FileLayer, read_lora
from ..artifacts.lora_renaming import require_most
from ..artifacts.tensor_files import Entry, finite, read_entries
from ..artifacts.tensor_header import read_header
from ..artifacts.weights import Weights
from ..errors import Cancelled, UserError
from ..events import Emit, PhaseEvent, WorkingEvent
from ..families import sizes
from ..families.recognition import recognize
from ..files import ensure_space, read_json
from ..reports import BakeReport, ShardReport
from ..spec.file_tasks import BakeSpec, ShardSpec
from .file_tasks import StopRequested

KEPT = ("modelspec.architecture", "modelspec.prediction_type", sizes.METADATA)
"""What tells readers what a checkpoint is."""
Change = tuple[Layer, FileLayer, float]
"""A layer of the model, what a LoRA does to it, and how strongly."""


def bake(spec: BakeSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> BakeReport:
    """Write a checkpoint whose weights are base + Σ strength · LoRA, in float32 before they are rounded."""
    base, metadata = whole_model(Path(spec.base), spec.file_precision, emit)
    changes, notes = changes_of(base, spec)
    if not changes:
        raise UserError("With these strengths nothing of the LoRAs is left. Raise one.")
    entries = [baked(base, entry, changes.get(name, ()), spec.file_precision) for name, entry in base.entries.items()]
    ensure_space(folder, sum(entry.bytes for entry in entries))
    entries = reporting(entries, "baking", emit, stop_requested)
    names = [Path(lora.path).stem for lora in spec.loras]
    files = save_checkpoint(folder, spec.name, entries, {
        **{name: metadata[name] for name in KEPT if name in metadata},
        "format": "pt", "modelspec.title": spec.name, "modelspec.merged_from": ", ".join([base.title, *names])})
    return BakeReport(files=files, keys=len(entries), loras=tuple(names), base=base.title, precision=spec.file_precision,
                      layers=len({layer.key for found in changes.values() for layer, *_ in found}), notes=tuple(notes))


def whole_model(path: Path, precision: str, emit: Emit) -> tuple[Weights, dict[str, str]]:
    """Every tensor of a checkpoint, and its metadata. A diffusers folder is loaded and named as a single file."""
    if path.is_file():
        weights = Weights.of_file(path)
        if precision == "same" and any(entry.eight_bit for entry in weights.entries.values()):
            raise UserError(f"{path.name!r} is stored in eight bits, too coarse for LoRAs to be worked in. Choose fp16 or "
                            "bf16 as file_precision.")
        return weights, read_header(path)[1]
    emit(PhaseEvent(text="loading the model", stage="loading"))
    base = recognize(str(path), path.name)
    family, dtype = families.get(base.family), PRECISIONS["fp16" if precision == "same" else precision]
    entries = family.checkpoint_entries(base, family.load_denoiser(base, torch.float32), {}, dtype)
    return Weights(path.name, {entry.name: entry for entry in entries}), family.size_metadata(base)


def changes_of(base: Weights, spec: BakeSpec) -> tuple[dict[str, list[Change]], list[str]]:
    """(tensor of the model → changes, what is to be said). UserError for a LoRA most of whose layers the model lacks."""
    names, found, notes = LayerNames.of_checkpoint(base.shapes()), {}, []
    for lora in spec.loras:
        file, placed, missing = read_lora(Path(lora.path)), [], []
        notes += file.remarks()
        for key, layer in file.layers.items():
            strength, place = lora.text if is_text(key) else lora.model, names.find(key)
            if not strength:
                continue
            if place is None:
                missing.append(key)
            else:
                placed.append(key)
                found.setdefault(place.tensor, []).append((place, layer, strength))
        if missing:
            require_most(file, placed, missing, repr(base.title))
            notes.append(f"{len(missing)} layers of {file.name} are not in {base.title!r}, for example {missing[0]}; they "
                         "were left out")
    return found, notes


def baked(base: Weights, entry: Entry, changes: Sequence[Change], precision: str) -> Entry:
    """A tensor of the result. What no LoRA changes is copied as it is."""
    dtype = entry.dtype if precision == "same" else PRECISIONS[precision]
    if not changes:
        source = finite(entry, base.title)
        return source if dtype == entry.dtype else in_precision(source, dtype)

    def pieces() -> Iterable[Tensor]:
        weight = base.weight(entry.name)
        original = weight.clone() if any(layer.is_dora for _, layer, _ in changes) else weight
        for place, layer, strength in changes:
            rows, shape = place.rows(weight), layer.shape
            if shape[0] != rows.shape[0] or prod(shape) != rows.numel():
                raise UserError(f"{place.key} is {list(shape)} in {layer.file.title!r} and {list(rows.shape)} in "
                                f"{base.title!r}: the LoRA is for another model.")
            place.add(weight, strength * layer.change(place.rows(original)))
        return [weight]
    return in_precision(replace(entry, pieces=pieces), dtype)


def reporting(entries: Sequence[Entry], text: str, emit: Emit, stop_requested: StopRequested) -> list[Entry]:
    """The same entries; reading them shows progress, and asks whether to go on."""
    done = 0

    def watched(entry: Entry):
        def pieces():
            nonlocal done
            if stop_requested():
                raise Cancelled
            done += 1
            emit(WorkingEvent(text=text, done=done, total=len(entries)))
            return entry.pieces()
        return replace(entry, pieces=pieces)
    return [watched(entry) for entry in entries]


def shard(spec: ShardSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> ShardReport:
    """Cut a file into shards, or join the shards of an index. Tensors stay bit for bit as they are."""
    path = Path(spec.checkpoint)
    entries, metadata = joined_entries(path) if path.suffix == ".json" else (read_entries(path), read_header(path)[1])
    if path.suffix != ".json" and not spec.shard_size:
        raise UserError(f"{path.name!r} is one file already. Choose an index of shards to join, or a shard_size above 0.")
    ensure_space(folder, sum(entry.bytes for entry in entries.values()))
    watched = reporting(list(entries.values()), "writing", emit, stop_requested)
    try:
        files = save_checkpoint(folder, spec.name, watched, metadata, spec.shard_size)
    except BaseException:  # some of the shards are of no use to anybody
        for part in folder.glob(f"{spec.name}-?????-of-?????.safetensors"):
            part.unlink(missing_ok=True)
        raise
    return ShardReport(files=files, keys=len(entries))


def joined_entries(index: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """All tensors of a sharded checkpoint, and the first shard's metadata."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index.name!r} is no index of shards, or is damaged. Choose a .safetensors.index.json.")
    entries, metadata = {}, {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"The shard {json.dumps(name)} is not beside {index.name!r}. Put all shards into one folder.")
        metadata = metadata or read_header(index.parent / name)[1]
        stored = read_entries(index.parent / name)
        entries |= {tensor: stored[tensor] for tensor, place in places.items() if place == name and tensor in stored}
    missing = [tensor for tensor in places if tensor not in entries]
    if missing:
        raise UserError(f"{len(missing)} tensors of {index.name!r}, for example {missing[0]}, are in no shard. Download it "
                        "again.")
    return entries, metadata
