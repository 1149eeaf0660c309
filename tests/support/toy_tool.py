"""A file tool in one file: its spec, its report and its function. It needs a line in the table and nothing else."""
from pathlib import Path
from typing import Literal

from finetune.trainers.events import Emit, WorkingEvent
from finetune.trainers.reports import Report, SavedFile
from finetune.trainers.spec.file_tasks import FileTaskSpec
from finetune.trainers.tools.file_tasks import FileTool, StopRequested


class ReverseSpec(FileTaskSpec):
    task: Literal["reverse"] = "reverse"
    source: str

    def inputs(self) -> list[str]:
        return [self.source]


class ReverseReport(Report):
    task: Literal["reverse"] = "reverse"
    length: int


def reverse(spec: ReverseSpec, folder: Path, emit: Emit, stop_requested: StopRequested) -> ReverseReport:
    data, path = Path(spec.source).read_bytes(), folder / f"{spec.name}.safetensors"
    emit(WorkingEvent(text="reversing", done=1, total=2))
    path.write_bytes(data[::-1])
    return ReverseReport(files=(SavedFile.at("lora", path),), length=len(data))


TOOL = FileTool(ReverseSpec, reverse, "Reversing", "a file from its end to its beginning", {"start": 50, "reversing": 50})
