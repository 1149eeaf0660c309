"""Child processes that take turns, and their time and peak memory."""
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .pack import ROOT

GIB = 2**30
QUIET = 0.08
"""Fraction of the processors that other programs may take during a measurement."""
TRIES = 3
"""Attempts at an undisturbed step."""


# ---- the child's side ----------------------------------------------------------------------------------------------

class Turns:
    """Called by a contender after every step: reports the step and waits for the next turn.

    The time of the first step includes loading. `SystemExit` ends the contender when no more turns will come.
    """

    def __init__(self):
        import torch

        self.accelerated = torch.cuda.is_available()
        # Only reports may reach the parent; what libraries print goes to standard error.
        self.reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.baseline = 0 if self.accelerated else peak_resident()
        self.peak, self.training, self.steps = 0, 0, 0
        self.began = time.perf_counter()

    def __call__(self):
        if self.accelerated:
            import torch

            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.began
        self._count_peak()
        report = {"seconds": seconds, "peak": self.peak, "training": self.training, "baseline": self.baseline}
        print(json.dumps(report), file=self.reports, flush=True)
        if not sys.stdin.readline():
            raise SystemExit
        self.began = time.perf_counter()

    def _count_peak(self):
        """`peak` is of the whole process; `training` leaves out the first step, before which the model was loaded."""
        if self.accelerated:
            import torch

            latest = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            latest = peak_resident()
            forget_peak_resident()
        self.peak = max(self.peak, latest)
        self.training = max(self.training, latest) if self.steps else 0
        self.steps += 1


def forget_peak_resident():
    """Count the peak anew from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_resident() -> int:
    """The most bytes of main memory that this process has had at once."""
    try:
        # Not getrusage: there a Linux child begins with the peak of its parent.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except OSError:
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss)


# ---- the parent's side ---------------------------------------------------------------------------------------------

class Processors:
    """How busy other programs keep the processors while a child works."""

    def __init__(self, child: int):
        self.child = psutil.Process(child)
        self.mark = self._now()

    def _now(self) -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), self.child.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0)
        # Guest time is counted in user time too.
        total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
        return total, idle, own.user + own.system

    def others(self) -> float:
        """Their fraction of all processors since the last call."""
        before, self.mark = self.mark, self._now()
        total, idle, own = (after - earlier for after, earlier in zip(self.mark, before))
        return max(0.0, total - idle - own) / total if total else 0.0


class Patience:
    """Seconds that may still be spent on waiting for quiet and on making steps again."""

    def __init__(self, seconds: float):
        self.left = seconds


class Contender:
    """A child process that makes one step at each turn. Use as a context manager."""

    def __init__(self, module: str, *arguments: str, log: Path, patience: Patience):
        self.patience = patience
        self.log = open(log, "ab")  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log, text=True, encoding="utf-8",
        )
        self.processors = Processors(self.process.pid)
        self.memory = {"peak": 0, "training": 0, "baseline": 0}
        self.disturbed = 0

    def first_step(self) -> float:
        """Seconds of loading and the first step together."""
        return self._report()

    def step(self) -> float:
        """Let it make one step; returns the seconds. A step that other programs disturbed is made again."""
        for _ in range(TRIES):
            self._wait_for_quiet()
            self.processors.others()
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            seconds = self._report()
            if self.processors.others() < QUIET:
                return seconds
            if self.patience.left < seconds:
                break
            self.patience.left -= seconds
        self.disturbed += 1
        return seconds

    def _wait_for_quiet(self):
        self.processors.others()
        while self.patience.left > 0:
            time.sleep(0.5)
            if self.processors.others() < QUIET:
                return
            self.patience.left -= 0.5

    def _report(self) -> float:
        line = self.process.stdout.readline()
        if not line:
            tail = Path(self.log.name).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            raise RuntimeError("A contender ended before its step was done:\n" + "\n".join(tail))
        report = json.loads(line)
        self.memory = {name: report[name] for name in self.memory}
        return report["seconds"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


@dataclass(frozen=True)
class Summary:
    """Median, extremes, and the standard error of the median (1.2533 σ / √n of a normal sample, σ from the median
    absolute deviation, so that a disturbed measurement does not count)."""

    median: float
    lowest: float
    highest: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Summary":
        median = statistics.median(values)
        deviation = 1.4826 * statistics.median(abs(value - median) for value in values)
        return cls(median, min(values), max(values), 1.2533 * deviation / len(values) ** 0.5)

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in vars(self).items()}

    def __str__(self):
        return f"{self.median:.3f} ({self.lowest:.3f} to {self.highest:.3f})"


def library_versions(*names: str) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in names}
