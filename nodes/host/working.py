"""The work of a worker process on its node: followed, its files placed, and asked once whether the host loads them."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from PIL import Image

from ...trainers.errors import UserError
from ...trainers.events import (
    CancelledEvent,
    CancellingEvent,
    Event,
    FailedEvent,
    NoteEvent,
    PhaseEvent,
    StartedEvent,
    WorkingEvent,
)
from ...trainers.process.parent import TrainingProcess
from ...trainers.reports import Report
from ...trainers.run_folder import Run, open_run
from ...trainers.spec import RunSpec
from ...trainers.spec.file_tasks import FileTaskSpec
from .placing import is_taken, place, place_preview, remove_meanwhile, watch
from .running import NodeProgress, follow, free_memory, require_packages

R = TypeVar("R", bound=Report)
LoadCheck = Callable[[Run, R], list[str] | None]
"""What the host would not load of the files of a run; None where that cannot be known."""


class Display:
    """Events as text, bar and image on a node: the one place that tells their kinds apart. `on_<kind>` shows an event of a
    kind; nodes that hear of more kinds add methods for them, and the others are passed over."""

    def __init__(self, progress: NodeProgress, starting: str = "starting the process", cancelling: str = "cancelling",
                 cancelled: str = "cancelled; nothing was written"):
        self.progress, self.starting, self.cancelling, self.cancelled = progress, starting, cancelling, cancelled
        self.notes: list[str] = []

    def show(self, event: Event):
        """Raises UserError with what a worker that failed says."""
        show = getattr(self, f"on_{event.event}", None)
        if show is not None:
            show(event)

    def on_started(self, event: StartedEvent):
        self.progress.show(self.starting, reached=event.progress)

    def on_phase(self, event: PhaseEvent):
        self.progress.show(event.text, reached=event.progress)

    def on_working(self, event: WorkingEvent):
        self.progress.show(f"{event.text}, {event.done} of {event.total}", event.done, event.total, reached=event.progress)

    def on_note(self, event: NoteEvent):
        self.notes.append(event.text)

    def on_cancelling(self, event: CancellingEvent):
        self.progress.show(self.cancelling)

    def on_cancelled(self, event: CancelledEvent):
        self.progress.show(event.message or self.cancelled)

    def on_failed(self, event: FailedEvent):
        raise UserError(event.message)


def work(run: Run, display: Display, free: bool = True):
    """Run the worker until its task is done; `free` gives the host's models up for it. Raises UserError when it fails, the
    host's interrupt when cancelled."""
    require_packages()
    if free:
        free_memory()
    with TrainingProcess(run) as process:
        follow(process.events(), process.cancel, display.show)


@dataclass
class Made(Generic[R]):
    """Finished work: its report, and its files under the names that loaders list, by kind."""

    run: Run
    report: R
    names: dict[str, str]
    progress: NodeProgress

    @property
    def file(self) -> Path:
        return self.run.artifact

    def path(self, kind: str) -> Path:
        return self.run.folder / next(file.name for file in self.report.files if file.kind == kind)

    def notes(self) -> list[str]:
        return [f"Note: {note}." for note in self.report.notes]


def make_files(spec: RunSpec | FileTaskSpec, report: type[R], kinds: Sequence[str], progress: NodeProgress,
               begin: Callable[[Run], None], load_check: LoadCheck[R], done: str,
               preview_of: Callable[[Run], Image.Image | None] = lambda run: None) -> Made[R]:
    """Do what a spec asks for by `begin(run)`, or take what is there; place the files, and ask the host once whether they
    load. `kinds` are those of the files that loaders list, `done` begins the sentence if they do not load. A LoRA gets the
    image `preview_of(run)` beside it.

    Raises UserError, or the host's interrupt.
    """
    run = open_run(spec, lambda name: is_taken(kinds, name))
    if run.report is None:
        begin(run)
    found = run.report
    if not isinstance(found, report):
        raise UserError(run.deleted)
    if not found.load_checked:
        found = found.checked(load_check(run, found))
        found.write(run.report_path)
    if found.unmatched_keys:
        raise UserError(f"{done}, but ComfyUI would not load {len(found.unmatched_keys)} weights of its file, for example "
                        f"{found.unmatched_keys[0]!r}. The file is kept at {run.name}/{run.artifact.name}; please report "
                        "this.")
    return Made(run, found, _placed(run, spec.name, found, preview_of), progress)


def _placed(run: Run, name: str, report: Report, preview_of: Callable[[Run], Image.Image | None]) -> dict[str, str]:
    """Put the files of a finished run where loaders find them; their names there, by kind. `name` is what the node calls the
    run; see `watch`."""
    placed = {file.kind: place(file.kind, run.folder / file.name, run.name) for file in report.files if file.is_loadable}
    preview = preview_of(run) if "lora" in placed else None
    if preview is not None:
        place_preview(placed["lora"], preview)
    remove_meanwhile(run.folder)
    watch(name, [*placed.values(), run.report_path])
    return {kind: path.name for kind, path in placed.items()}
