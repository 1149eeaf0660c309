"""Tasks that make files out of files, as the worker process does them: one function each, spec and folder in, report out.

A report has "files" (kind, name and bytes of each), "notes", and what the task's node shows.
"""
from pathlib import Path

from . import baking, conversion, extraction, extraction_report, merging, onnx_export
from .artifacts.lora import write_lora
from .artifacts.lora_file import read_lora
from .artifacts.lora_precision import low_rank_tensors
from .artifacts.metadata import merge_metadata
from .errors import Cancelled, UserError
from .files import write_json
from .runs import Run
from .spec.file_tasks import SPECS, MergeSpec


def perform(content: dict, run: Run, emit, stop_requested) -> dict:
    """Do what a spec asks for; returns the report, which is then in the run's folder too."""
    spec = SPECS[content["task"]].model_validate(content)
    report = WORK[spec.task](spec, run.folder, emit, stop_requested)
    write_json(run.report_path, report)
    return report


def extract(spec, folder: Path, emit, stop_requested) -> dict:
    report = extraction.extract(spec, folder / f"{spec.name}.safetensors", emit, stop_requested)
    extraction_report.draw(report).save(folder / extraction_report.FILE)
    return report


def merge(spec: MergeSpec, folder: Path, emit, stop_requested) -> dict:
    files = conversion.under_the_same_names([read_lora(Path(lora.path)) for lora in spec.loras])
    tensors, ranks, energy, kept = {}, [], 0.0, 0.0

    def on_layer(done: int, total: int):
        if stop_requested():
            raise Cancelled
        emit("working", text="merging", done=done, total=total)

    for weight, before in merging.merge(
            files, [lora.model for lora in spec.loras], [lora.text for lora in spec.loras],
            merging.Resize(spec.rule, spec.rank, spec.threshold), on_layer):
        tensors |= low_rank_tensors(weight, spec.file_precision)
        ranks.append(len(weight.down))
        energy, kept = energy + before, kept + weight.change_norm() ** 2
    if not ranks:
        raise UserError("Nothing is left of these LoRAs at these strengths. Raise one.")
    path = folder / f"{spec.name}.safetensors"
    metadata = merge_metadata(spec, [(file.name, file.metadata) for file in files], ranks)
    size = write_lora(path, tensors, metadata)
    return {
        "files": [{"kind": "lora", "name": path.name, "bytes": size}], "bytes": size, "keys": len(tensors),
        "layers": len(ranks), "ranks": [min(ranks), max(ranks)], "change_norm": kept**0.5, "energy": energy,
        "kept": kept / energy if energy else 1.0, "precision": spec.file_precision,
        "notes": [f"{file.name} holds {len(file.unknown)} tensors that are no part of a LoRA, for example "
                  f"{file.unknown[0]}; they were left out" for file in files if file.unknown],
    }


WORK = {"extract": extract, "merge": merge, "convert": conversion.convert, "metadata": conversion.edit_metadata,
        "bake": baking.bake, "shard": baking.shard, "onnx": onnx_export.export}
