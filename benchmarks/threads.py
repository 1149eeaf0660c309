"""How the threads of a training step wait for each other, on a quiet and on a busy machine.

    python -m benchmarks.threads [--rounds 5] [--settings "one thread" worker]     always against the default

Threads that wait in a loop (the default of OpenMP's libraries for a while) take a processor from those that still work,
as soon as another program uses one too. One process for each setting trains a LoRA on the demo base; they take turns, step
by step, first alone and then beside a program that keeps all processors busy. Ratios are medians of those of single rounds.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from .pack import ROOT
from .report import finish

CORES = psutil.cpu_count(logical=False) or os.cpu_count()
SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "no spinning": {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"},
    "physical cores": {"OMP_NUM_THREADS": str(CORES)},
    "a core less": {"OMP_NUM_THREADS": str(max(1, CORES - 1))},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "worker": {},
}
"""Name → environment; "worker" is what the engine sets by itself."""
BUSY = "import os\nfor _ in range(os.cpu_count() - 1):\n    if not os.fork():\n        break\nwhile True:\n    pass"


class Contender:
    """A training process that makes a step when it is asked to."""

    def __init__(self, name: str, folder: Path):
        from trainers.process.parent import thread_settings

        plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))}
        own = thread_settings(plain) if name == "worker" else SETTINGS[name]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.threads", "--child", str(folder / name)], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**plain, **own})

    def step(self) -> float:
        """Seconds of one step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("seconds "):
            if not line:
                raise RuntimeError("a training process has ended")
        return float(line.split()[1])

    def end(self):
        self.process.kill()
        self.process.wait()


def child(folder: str):
    """Train; between steps wait for a line on standard input."""
    from trainers import spec as specs
    from trainers.events import silent
    from trainers.training.run import loop, train_run

    from .demo_training import demo_spec, open_run

    spec = demo_spec("threads", "openmoji", specs.LoraSpec(rank=8, alpha=8), 1e-4, Path(folder), steps=10_000, batch_size=4)
    accumulate = loop.accumulate_gradients

    def timed(*arguments):
        sys.stdin.readline()
        began = time.perf_counter()
        loss = accumulate(*arguments)
        print("seconds", time.perf_counter() - began, flush=True)
        return loss

    loop.accumulate_gradients = timed
    train_run(spec, open_run(spec), silent)


def measure(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender.step())
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--child", default="")
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    with tempfile.TemporaryDirectory() as folder:
        contenders = {name: Contender(name, Path(folder)) for name in dict.fromkeys(["default", *options.settings])}
        busy = None
        try:
            measure(contenders, 2)  # the first steps load, and warm up
            others = psutil.cpu_percent(interval=2)
            found = {"quiet": measure(contenders, options.rounds)}
            busy = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
            found["busy"] = measure(contenders, options.rounds)
        finally:
            if busy:
                os.killpg(busy.pid, 9)
            for contender in contenders.values():
                contender.end()
    ratios = {(when, name): statistics.median(own / default for own, default in zip(seconds[name], seconds["default"]))
              for when, seconds in found.items() for name in seconds}
    goals = {("quiet", "worker"): 1.1, ("busy", "worker"): 1.0}
    for when, seconds in found.items():
        for name, each in seconds.items():
            print(f"{when:6} {name:15} {statistics.median(each):7.3f} s  {ratios[when, name]:.2f} × default")
    finish("threads", [
        {"measure": f"step, {when}: {name} against default", "value": round(ratio, 3), "unit": "times",
         "goal": goals.get((when, name)), "met": ratio <= goals.get((when, name), float("inf"))}
        for (when, name), ratio in ratios.items()], {"cores": CORES, "others_percent": others, "seconds": found})


if __name__ == "__main__":
    main()
