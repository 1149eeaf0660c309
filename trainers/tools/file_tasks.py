"""THE table of the file tools: what each is asked for, which function does it, and what people read of it.

A new tool is a file, with its spec, its report and its function, and a line here. The worker, the command line and the nodes
read the table.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ..events import Emit
from ..reports import Report
from ..run_folder import Run
from ..spec.file_tasks import (
    BakeSpec,
    ConvertSpec,
    ExtractionSpec,
    FileTaskSpec,
    MergeSpec,
    MetadataSpec,
    OnnxSpec,
    ShardSpec,
)

StopRequested = Callable[[], bool]
Work = Callable[[FileTaskSpec, Path, Emit, StopRequested], Report]
"""work(spec, folder, emit, stop_requested) writes its files into the folder of a run and returns the report."""


@dataclass(frozen=True)
class FileTool:
    spec: type[FileTaskSpec]
    work: Work
    title: str
    """Begins a sentence about what went wrong."""
    help: str
    stages: Mapping[str, float]
    """Its parts in their order, with about the percentage of the time that each takes."""

    @property
    def name(self) -> str:
        return self.spec.model_fields["task"].default


def later(module: str, function: str) -> Work:
    """A function of a module in this room, which is imported when it is called: that takes seconds."""
    def work(spec: FileTaskSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> Report:
        return getattr(import_module(f".{module}", __package__), function)(spec, folder, emit, stop_requested)
    return work


TOOLS: dict[str, FileTool] = {tool.name: tool for tool in (
    FileTool(ExtractionSpec, later("extraction", "extract_into"), "Extraction",
             "make a LoRA of what a tuned model changed in its base", {"start": 3, "extracting": 94, "writing": 3}),
    FileTool(MergeSpec, later("merging", "merge_into"), "Merging",
             "several LoRAs as one, or one with another rank or strength", {"start": 3, "merging": 94, "writing": 3}),
    FileTool(ConvertSpec, later("conversion", "convert"), "Conversion",
             "a LoRA under other names, or in another precision",
             {"start": 3, "naming": 12, "converting": 80, "writing": 5}),
    FileTool(MetadataSpec, later("conversion", "edit_metadata"), "Editing",
             "a LoRA with other metadata and trigger words", {"start": 50, "writing": 50}),
    FileTool(BakeSpec, later("baking", "bake"), "Baking",
             "a checkpoint with LoRAs worked into its weights", {"start": 3, "loading": 10, "baking": 87}),
    FileTool(ShardSpec, later("baking", "shard"), "Splitting",
             "a checkpoint cut into shards, or shards joined", {"start": 3, "loading": 10, "writing": 87}),
    FileTool(OnnxSpec, later("onnx_export", "export"), "Exporting",
             "a denoiser with its LoRAs as an ONNX file", {"start": 3, "loading": 12, "baking": 20, "computing": 10,
                                                           "exporting": 35, "writing": 10, "proving": 10}),
)}


def perform(spec: FileTaskSpec, run: Run, emit: Emit, stop_requested: StopRequested) -> Report:
    """Do what a spec asks for; returns the report, which is then in the run's folder too."""
    report = TOOLS[spec.task].work(spec, run.folder, emit, stop_requested)
    report.write(run.report_path)
    return report
