"""Tasks that make files out of files, as the worker process does them: one function each, spec and folder in, report out.

A report has "files" (kind, name and bytes of each), "notes", and what the task's node shows.
"""
from pathlib import Path

from ..artifacts.layer_names import family_of_lora
from ..artifacts.lora import write_lora
from ..artifacts.lora_file import read_lora
from ..artifacts.lora_precision import low_rank_tensors
from ..artifacts.lora_renaming import under_one_makers_names
from ..artifacts.metadata import merge_metadata
from ..drawing import extraction_report
from ..errors import Cancelled, UserError
from ..files import write_json
from ..run_folder import Run
from ..spec.file_tasks import SPECS, MergeSpec
from . import baking, conversion, extraction, merging, onnx_export
from .extraction import family_metadata


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
    made = under_one_makers_names([read_lora(Path(lora.path)) for lora in spec.loras])
    files = [(file, lora) for each, lora in zip(made, spec.loras) for file in each.all()]
    tensors, ranks, energy, kept = {}, [], 0.0, 0.0

    def on_layer(done: int, total: int):
        if stop_requested():
            raise Cancelled
        emit("working", text="merging", done=done, total=total)

    for weight, before in merging.merge(
            [file for file, _ in files], [lora.model for _, lora in files], [lora.text for _, lora in files],
            merging.Resize(spec.rule, spec.rank, spec.threshold), on_layer):
        tensors |= low_rank_tensors(weight, spec.file_precision)
        ranks.append(len(weight.down))
        energy, kept = energy + before, kept + weight.change_norm() ** 2
    if not ranks:
        raise UserError("Nothing is left of these LoRAs at these strengths. Raise one.")
    path = folder / f"{spec.name}.safetensors"
    metadata = merge_metadata(spec, [(each.file.name, each.file.metadata) for each in made], ranks, family_metadata(
        next((family for each in made if (family := family_of_lora(each.file.shapes(), each.file.metadata))), "")))
    size = write_lora(path, tensors, metadata)
    return {
        "files": [{"kind": "lora", "name": path.name, "bytes": size}], "bytes": size, "keys": len(tensors),
        "layers": len(ranks), "ranks": [min(ranks), max(ranks)], "change_norm": kept**0.5, "energy": energy,
        "kept": kept / energy if energy else 1.0, "precision": spec.file_precision,
        "notes": [note for each in made for note in each.file.remarks()] + merging.flat_note(file for file, _ in files),
    }


WORK = {"extract": extract, "merge": merge, "convert": conversion.convert, "metadata": conversion.edit_metadata,
        "bake": baking.bake, "shard": baking.shard, "onnx": onnx_export.export}
