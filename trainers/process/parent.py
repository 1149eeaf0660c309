"""The parent side of a run: start the worker process, follow its events, cancel it."""
import contextlib
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import plain_lines
from ..events import FINAL, CancelledEvent, CancellingEvent, Event, FailedEvent, read_event
from ..run_folder import Run
from .tasks import task_of

SCRIPT = Path(__file__).parents[1] / "__main__.py"
PATIENCE = 300.0
"""Seconds that a cancelled worker may be silent before it is ended."""
LAUNCHER = "FINETUNE_LAUNCHER"
"""A variable of the environment: what starts workers in place of this process's own Python, such as a profiler."""


def thread_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What is added to a worker's environment so that threads which wait for each other sleep. Else they spin for a while
    and, on a busy machine, take the processors from those that they wait for (benchmarks/threads.py). What people have set
    themselves stays."""
    if any(name in environment for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE"}


class TrainingProcess:
    """A running worker. Use as a context manager: leaving it ends the process, cancelled first if it still trains."""

    def __init__(self, run: Run, launcher: Sequence[str] = ()):
        """`launcher` goes before the script, for example ("accelerate", "launch", "--num_processes", "2"); by default what
        `LAUNCHER` says, or this process's own Python."""
        self.run, self.cancelled, self.heard_at = run, False, 0.0
        self.log = open(run.log_path, "ab")  # noqa: SIM115  closed in __exit__
        # A script path, not -m: an isolated Python (Windows portable ComfyUI) has no search path but its own.
        launcher = launcher or shlex.split(os.environ.get(LAUNCHER, "")) or [sys.executable]
        command = [*launcher, str(SCRIPT), "work", str(run.folder)]
        environment = {
            **os.environ, **thread_settings(os.environ),
            "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false",
        }
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        assert self.process.stdin and self.process.stdout  # pipes, as asked for
        self.orders, self.answers = self.process.stdin, self.process.stdout
        self.lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.answers:
            self.lines.put(line)
        self.lines.put(None)

    def events(self, tick: float = 0.2) -> Iterator[Event | None]:
        """Events as they come, and None whenever `tick` seconds pass without one, so that the caller can look around.

        Ends after a final event. A worker that dies without one gives a FailedEvent; one that does not answer to `cancel` is
        ended, and gives a CancelledEvent with a message.
        """
        while True:
            try:
                line = self.lines.get(timeout=tick)
            except queue.Empty:
                if self.cancelled and time.monotonic() - self.heard_at > PATIENCE:
                    yield self._end()
                    return
                yield None
                continue
            if line is None:
                yield FailedEvent(message=self._obituary())
                return
            event = read_event(line)
            if event is None:
                continue
            self.heard_at = time.monotonic()
            yield event
            if isinstance(event, FINAL):
                return

    def cancel(self):
        """Ask the worker to save and stop; its last event will be a CancelledEvent."""
        if not self.cancelled:
            self.cancelled, self.heard_at = True, time.monotonic()
            try:
                self.orders.write(b"cancel\n")
                self.orders.flush()
            except OSError:
                pass

    def _end(self) -> Event:
        """End a worker that does not answer; the last event."""
        self.process.kill()
        steps, task = self.run.checkpoints(), task_of(self.run)
        return CancelledEvent(step=steps[-1] if steps else 0, message=(
            f"The {task.title.lower()} process was ended because it did not answer to cancel within {PATIENCE:g} s. "
            f"{task.resume_advice(self.run)}"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.orders.close()
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _obituary(self) -> str:
        code, task = self.process.wait(), task_of(self.run)
        resume = task.resume_advice(self.run)
        if code < 0:
            name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
            hint = " The system ends processes this way when memory runs out." if name == "SIGKILL" else ""
            return f"The {task.title.lower()} process was ended from outside ({name}).{hint} {resume}"
        log = self.run.log_path.read_text(encoding="utf-8", errors="replace") if self.run.log_path.exists() else ""
        tail = plain_lines(log)[-1:]
        last = f" Its last words: {tail[0][:300]}" if tail else ""
        return f"The {task.title.lower()} process ended unexpectedly (code {code}).{last} {resume}"


def follow(events: Iterable[Event | None], cancel: Callable[[], None], report: Callable[[Event], None],
           look_around: Callable[[], None], interrupt: type[BaseException]):
    """Hand events to `report` until they end. When `look_around` or `report` raises `interrupt`, `cancel` is called, the
    CancellingEvent is reported at once and then only the last one, and the interrupt is raised at the end."""
    interruption = None
    for event in events:
        try:
            look_around()
            if event is not None and interruption is None:
                report(event)  # a progress bar may look around too
                event = None
        except interrupt as raised:
            if interruption is None:
                cancel()
                report(CancellingEvent())
            interruption = raised
        if event is not None and isinstance(event, FINAL):
            report(event)
    if interruption is not None:
        raise interruption
