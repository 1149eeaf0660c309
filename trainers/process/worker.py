"""The child process: a spec goes in, events come out.

Events are JSON objects, one a line, written to the run's `events.jsonl` and to standard output; libraries that print
are sent to standard error. Reading "cancel", or the end of standard input, asks the run to stop and save.
"""
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TextIO

from ..errors import Cancelled, UserError, reason_of
from ..events import FINAL, CancelledEvent, CancellingEvent, Event, FailedEvent
from ..run_folder import Run
from ..stopping import StopRequest, breakable, unbroken
from .progress import Progress
from .tasks import Task, caches_of, task_of

EXIT_FINISHED, EXIT_FAILED, EXIT_CANCELLED = 0, 1, 3


class Reporter:
    """Writes events to the run's file and to a stream. Only the main process of a distributed run has a voice."""

    def __init__(self, run: Run, stream: TextIO | None, is_main: bool):
        self.stream = stream
        self.file = open(run.events_path, "a", encoding="utf-8", errors="replace") if is_main else None  # noqa: SIM115
        self.lock, self.ended = threading.Lock(), False

    def __call__(self, event: Event):
        if self.file is None:
            return
        line = event.model_copy(update={"time": round(time.time(), 3)}).model_dump_json()
        with unbroken(), self.lock:
            if self.ended:  # the parent closes our standard input then, which sounds like a cancel
                return
            self.ended = isinstance(event, FINAL)
            self.file.write(line + "\n")
            self.file.flush()
            if self.stream:
                try:
                    print(line, file=self.stream, flush=True)
                except BrokenPipeError:  # the parent died; its end of standard input asks us to stop
                    self.stream = None


def main(run_folder: str, piped: bool) -> int:
    """Do what the spec in `run_folder` asks for. `piped` says that a parent process reads events and may cancel."""
    run, rank = Run(Path(run_folder)), int(os.environ.get("RANK", 0))
    task = task_of(run)
    stream = _private_standard_output() if piped else sys.stdout
    emit = Progress(Reporter(run, stream, is_main=rank == 0), task.stages)
    lock = None
    try:
        stop = StopRequest(listen=piped and rank == 0, on_request=lambda: emit(CancellingEvent()))
        if rank == 0:
            lock = run.lock()
            run.take_over(caches_of(run))
        with breakable():
            finished = task.perform(run, emit, stop)
        emit(finished)
        return EXIT_FINISHED
    except Cancelled:
        emit(CancelledEvent(step=run.checkpoints()[-1] if run.checkpoints() else 0))
        return EXIT_CANCELLED
    except UserError as problem:
        emit(FailedEvent(message=str(problem)))
    except Exception as problem:
        traceback.print_exc()
        emit(FailedEvent(message=_sentence(problem, run, task)))
    finally:
        if lock:
            lock.release()
    return EXIT_FAILED


def _private_standard_output() -> TextIO:
    """A stream to the real standard output; everything else that prints goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", newline="\n")
    os.dup2(2, 1)
    return stream


def _sentence(problem: Exception, run: Run, task: Task) -> str:
    import torch

    if not run.spec_path.exists():
        return run.deleted
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return f"The memory is full. {task.memory_advice}; then queue again."
    kind, reason = type(problem).__name__, reason_of(problem)
    what = kind if reason == kind else f"{kind}: {reason}"
    return (f"{task.title} stopped at an error that nobody foresaw: {what} "
            f"(details in {run.name}/{run.log_path.name}).")
