"""Run folders: one per run, found again by identity.

    <runs>/<name>/
        run.json            identity
        spec.json           what was asked for
        events.jsonl        everything that happened, one JSON object a line
        log.txt             what libraries printed
        checkpoints/step_000250/   state.pt and the file as it was then
        checkpoints/best/   the file of the best validation and what its report says
        previews/           step_000100.png …, and progress.png: all of the run at a glance
        loss.png            chart of the losses
        tensorboard/        for TensorBoard, if that was asked for
        <name>.safetensors  the finished file (embeddings and hypernetworks too, by their own suffixes)
        report.json         present once the run is finished
"""
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from .errors import UserError
from .events import CancelledEvent, CheckpointEvent, Event, FailedEvent, StepEvent, ValidationEvent, read_events
from .files import (
    UNFINISHED,
    mark_unfinished,
    read_json,
    remove_unfinished,
    temporary_beside,
    write_json,
)
from .reports import Report, SavedFile, read_report
from .spec import RunSpec
from .spec.file_tasks import FileTaskSpec

TRACES = {"run.json", "spec.json", "events.jsonl", "log.txt", ".lock", "checkpoints", "previews", "tensorboard", "loss.png"}
"""What a run that failed at once may leave."""


@dataclass(frozen=True)
class Run:
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def spec_path(self) -> Path:
        return self.folder / "spec.json"

    @property
    def events_path(self) -> Path:
        return self.folder / "events.jsonl"

    @property
    def log_path(self) -> Path:
        return self.folder / "log.txt"

    @property
    def artifact(self) -> Path:
        """The finished run's file; the first where there are several."""
        report = self.report
        if report is None:
            raise UserError(self.deleted)
        return self.folder / report.files[0].name

    @property
    def report_path(self) -> Path:
        return self.folder / "report.json"

    @property
    def report(self) -> Report | None:
        """The report of a finished run whose files are still there; else None."""
        report = read_report(self.report_path, self.task)
        complete = report and all((self.folder / file.name).exists() for file in report.files)
        return report if complete else None

    @property
    def task(self) -> str:
        """What its spec asks for; specs of trainings do not say it."""
        content = read_json(self.spec_path)
        return content.get("task", "training") if isinstance(content, dict) else "training"

    def read_spec(self) -> RunSpec:
        return RunSpec.model_validate_json(self.spec_path.read_bytes())

    @property
    def deleted(self) -> str:
        return (f"The folder of the run {self.name!r} was deleted or moved while it was worked on, so nothing more can be "
                "saved there. Put it back to go on from its last checkpoint, or queue again to start anew.")

    def require_folder(self):
        """Raise UserError when the folder was deleted in the middle of the run."""
        if not self.spec_path.exists():
            raise UserError(self.deleted)

    def lock(self) -> FileLock:
        """Held by the process that trains; released by the operating system when that process dies."""
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.name!r} is being worked on by another process. Wait for it, or choose another "
                            "name.") from None
        return lock

    @property
    def identity(self) -> str | None:
        content = read_json(self.folder / "run.json")
        return content.get("identity") if isinstance(content, dict) else None

    def clear_failed(self) -> bool:
        """Empty the folder of a run that ended before anything was learned, so that its name is free again. Returns whether
        it was one: what has a step, a checkpoint or a file, what may be at work and what holds things of others stays."""
        last = next(reversed(list(self.events())), None)
        if (self.identity is None or not isinstance(last, (FailedEvent, CancelledEvent)) or self.checkpoints()
                or self.losses() or not {path.name for path in self.folder.iterdir()} <= TRACES):
            return False
        try:
            lock = self.lock()
        except UserError:
            return False
        for path in self.folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        lock.release()
        return True

    def take_over(self, caches: Path):
        """Remove the unfinished files of a process that was killed while it held this lock, and mark those that this process
        is going to write. Whoever calls holds the lock. In the folder of caches other runs are at work, so only files with
        the mark of this run are removed there."""
        mark = f"{hashlib.sha256(str(self.folder.resolve()).encode(errors='replace')).hexdigest()[:8]}-"
        remove_unfinished([*self.folder.rglob(f"{UNFINISHED}*"), *caches.glob(f"*/??/{UNFINISHED}{mark}*")])
        mark_unfinished(mark)

    def events(self) -> Iterator[Event]:
        """All events so far; a line cut off by a kill is passed over."""
        if not self.events_path.exists():
            return
        with open(self.events_path, encoding="utf-8", errors="replace") as file:
            yield from read_events(file)

    def curve(self, kind: type[StepEvent] | type[ValidationEvent], field: str = "loss") -> dict[int, float]:
        """A number of all events of a kind by their step, ascending. Steps that were repeated after a kill count once."""
        by_step = {event.step: getattr(event, field) for event in self.events() if isinstance(event, kind)}
        return {step: by_step[step] for step in sorted(by_step) if by_step[step] is not None}

    def losses(self) -> list[float]:
        """The loss of every step in order."""
        return list(self.curve(StepEvent).values())

    def sheets(self) -> list[tuple[int, Path]]:
        """The previews, as (step, file), ascending."""
        return sorted((int(path.stem.split("_")[1]), path) for path in self.folder.glob("previews/step_*.png"))

    @property
    def strip_path(self) -> Path:
        return self.folder / "previews" / "progress.png"

    @property
    def chart_path(self) -> Path:
        return self.folder / "loss.png"

    @property
    def best_folder(self) -> Path:
        return self.folder / "checkpoints" / "best"

    def sheet_path(self, step: int) -> Path:
        return self.folder / "previews" / f"step_{step:06d}.png"

    def checkpoint_folder(self, step: int) -> Path:
        return self.folder / "checkpoints" / f"step_{step:06d}"

    def checkpoints(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        found = (re.fullmatch(r"step_(\d+)", state.parent.name) for state in self.folder.glob("checkpoints/*/state.pt"))
        return sorted(int(match[1]) for match in found if match)

    def checkpoint_files(self, step: int) -> tuple[SavedFile, ...]:
        """What was said of the files that lie beside the state of a step."""
        found = [event.files for event in self.events() if isinstance(event, CheckpointEvent) and event.step == step]
        return found[-1] if found else ()

    def save_state(self, step: int, state: dict):
        """`state` holds tensors and built-in containers only: it is read back without unpickling objects."""
        folder = self.checkpoint_folder(step)
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_beside(folder / "state.pt") as temporary:
            torch.save(state, temporary)
            os.replace(temporary, folder / "state.pt")

    def load_state(self) -> tuple[int, dict] | None:
        """The newest checkpoint that can be read, as (step, state)."""
        for step in reversed(self.checkpoints()):
            try:
                state = torch.load(self.checkpoint_folder(step) / "state.pt", map_location="cpu", weights_only=True)
            except Exception:  # a damaged archive raises one of many types; an older checkpoint will do
                continue
            if isinstance(state, dict):
                return step, state
        return None

    def prune_checkpoints(self, keep: int):
        for step in self.checkpoints()[:-keep]:
            shutil.rmtree(self.checkpoint_folder(step), ignore_errors=True)


def open_run(spec: RunSpec | FileTaskSpec, taken: Callable[[str], bool] = lambda name: False) -> Run:
    """The folder of this run: the one with its identity, or a new one. A taken name gets -2, -3, … `taken(name)` says that
    a new run shall not have this name, because there is a file of that name already: a run and its file are called the
    same."""
    runs = Path(spec.folders.runs)
    runs.mkdir(parents=True, exist_ok=True)
    run = _known_run(runs, spec) or _new_run(runs, spec, taken)
    write_json(run.spec_path, spec.model_dump(mode="json"))
    return run


def _known_run(runs: Path, spec: RunSpec | FileTaskSpec) -> Run | None:
    pattern = re.compile(rf"{re.escape(spec.name)}(?:-(\d+))?")
    found = [(int(match[1] or 1), folder) for folder in runs.iterdir() if (match := pattern.fullmatch(folder.name))]
    return next((Run(folder) for _, folder in sorted(found) if Run(folder).identity == spec.identity), None)


def _new_run(runs: Path, spec: RunSpec | FileTaskSpec, taken: Callable[[str], bool]) -> Run:
    for number in range(1, 10_000):
        run = Run(runs / (spec.name if number == 1 else f"{spec.name}-{number}"))
        if taken(run.name):
            continue
        try:
            run.folder.mkdir()
        except FileExistsError:
            if not run.clear_failed():
                continue
        write_json(run.folder / "run.json", {"identity": spec.identity, "version": spec.version})
        return run
    raise UserError(f"There are too many runs called {spec.name!r}. Choose another run name.")
