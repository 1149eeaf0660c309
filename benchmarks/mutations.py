"""Would the tests notice? Each change of `mutants` is made in a copy of the pack, and the test that it names must fail.

    python -m benchmarks.mutations [--only WORD] [--jobs 2]

`--only` takes the changes that hold a word in their file, test or meaning. A change whose original text is not in its file
exactly once is out of date, and so is one whose test does not pass without it: both end the run before anything is changed.
"""
import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from .mutants import ALL, Mutation
from .pack import comfyui_folder
from .report import finish

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 300
"""Seconds for one test. A change that lets it hang is not noticed."""
PRELOADED = ("pytest", "hypothesis", "torch", "accelerate", "peft", "PIL.Image", "pydantic", "safetensors.torch",
             "transformers.models.clip", "diffusers.training_utils", "diffusers.optimization", "diffusers.guiders",
             "diffusers.schedulers.scheduling_unipc_multistep", "diffusers.schedulers.scheduling_dpmsolver_sde",
             "diffusers.pipelines.onnx_utils",
             "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
             "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl")
"""Imported once, before the processes that run the tests are forked from this one."""


class Outcomes:
    """A plugin of pytest: which tests failed in their own body, and what else went wrong."""

    def __init__(self):
        self.passed, self.failed, self.errors = 0, [], []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            (self.failed if report.when == "call" else self.errors).append(report.nodeid)
        self.passed += report.when == "call" and report.passed

    def pytest_collectreport(self, report):
        if report.failed:
            self.errors.append(f"{report.nodeid}: could not be collected")


def out_of_date(mutations: list[Mutation]) -> list[str]:
    """Sentences about changes that do not fit the files any more."""
    found, problems = Counter((each.file, each.original, each.changed) for each in mutations), []
    for each in mutations:
        path = ROOT / each.file
        count = path.read_text(encoding="utf-8").count(each.original) if path.is_file() else 0
        if count != 1:
            problems.append(f"{each.file}: stands {count} times in it, not once: {each.original!r}")
        if found[each.file, each.original, each.changed] > 1:
            problems.append(f"{each.file}: the same change is listed twice: {each.original!r}")
        if not re.fullmatch(r"(unit|host)/test_\w+\.py::test_\w+(\[.+\])?", each.test):
            problems.append(f"{each.file}: {each.test!r} names no test of tests/unit or tests/host")
        if each.original == each.changed:
            problems.append(f"{each.file}: nothing changes: {each.original!r}")
        try:
            compile(path.read_text(encoding="utf-8").replace(each.original, each.changed), each.file, "exec")
        except (SyntaxError, OSError) as problem:
            problems.append(f"{each.file}: with the change it cannot be read: {problem}")
    return problems


def copy_of_the_pack(folder: Path) -> Path:
    """What git would commit, as it stands now. Large folders that no change touches are links."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT,
                            capture_output=True, check=True).stdout.decode().split("\0")
    folder.mkdir()
    linked = {"demo_base", "example_datasets", "example_loras", "example_workflows", "web"}
    for name in sorted({name.split("/")[0] for name in listed} & linked):
        folder.joinpath(name).symlink_to(ROOT / name, target_is_directory=True)
    for name in listed:
        if name and name.split("/")[0] not in linked and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)
    return folder


def run_tests(tree: Path, tests: list[str], output: Path, stop_at_first: bool, pipe):
    """In a process of its own: run tests of a copy and send their outcomes."""
    import pytest

    if hasattr(os, "setsid"):
        os.setsid()  # so that all that the tests start can be ended with them
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree)
    sys.path[:] = [path for path in sys.path if path and Path(path).resolve() != ROOT]
    outcomes = Outcomes()
    options = ["--import-mode=importlib", f"--rootdir={tree / 'tests'}", "-q", "-p", "no:cacheprovider"]
    pytest.main([*options, *(["-x"] if stop_at_first else []), *(f"tests/{test}" for test in tests)], plugins=[outcomes])
    pipe.send((outcomes.passed, outcomes.failed, outcomes.errors))
    pipe.close()
    sys.stdout.flush()
    os._exit(0)  # what a broken pack left running ends with it


def outcomes_of(tree: Path, tests: list[str], output: Path, stop_at_first: bool = True, longest: float = LONGEST):
    """(number of tests that passed, failed tests, errors) of tests in a copy."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_tests, args=(tree, tests, output, stop_at_first, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(longest):
            return 0, [], [f"no end after {longest:.0f} s"]
        return receiver.recv()
    except EOFError:
        return 0, [], ["the process of the tests died"]
    finally:
        with suppress(OSError, AttributeError):  # the tests may have started others, which would run for ever
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def verdict(mutation: Mutation, outcome: tuple) -> str:
    passed, failed, errors = outcome
    if any(name.split("[")[0] == mutation.test.split("[")[0] for name in failed):
        return "noticed"
    return "; ".join(["SURVIVED"] * bool(passed and not failed) + failed + errors) or "no test ran"


def examine(mutation: Mutation, tree: Path, output: Path) -> dict:
    """Make the change in a copy, run its test, take the change back."""
    path, began = tree / mutation.file, time.monotonic()
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.original, mutation.changed), encoding="utf-8")
    try:
        found = verdict(mutation, outcomes_of(tree, [mutation.test], output))
    finally:
        path.write_text(text, encoding="utf-8")
    return {"file": mutation.file, "meaning": mutation.meaning, "test": mutation.test, "found": found,
            "seconds": round(time.monotonic() - began, 1)}


def preload():
    """Import what all tests need, and use the copies' sources as they stand: a change may be as long as its original and
    made within the same second, which caches of bytecode cannot tell apart."""
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    if comfyui := comfyui_folder():
        os.environ["COMFYUI_PATH"] = str(comfyui)  # the copies have none
    for name in PRELOADED:
        __import__(name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word in the file, test or meaning")
    parser.add_argument("--jobs", type=int, default=2, help="tests at once")
    options = parser.parse_args()
    chosen = [each for each in ALL if options.only.lower() in " ".join((each.file, each.test, each.meaning)).lower()]
    problems = out_of_date(chosen)
    if problems or not chosen:
        raise SystemExit("\n".join(["The table is out of date:", *problems]) if problems else "No change holds that word.")
    if any(each.test.startswith("host/") for each in chosen) and comfyui_folder() is None:
        raise SystemExit("Some tests need a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            trees.put(copy_of_the_pack(Path(temporary, f"copy {number}")))
        tree = trees.get()
        print(f"{len(chosen)} changes; first their tests on the pack as it is", flush=True)
        output = Path(temporary, "output.txt")
        passed, *wrong = outcomes_of(tree, sorted({each.test for each in chosen}), output, False, 10 * LONGEST)
        if any(wrong) or not passed:
            raise SystemExit(f"{output.read_text(errors='replace')[-4000:]}\nWithout a change these fail: {wrong}")
        trees.put(tree)

        def one(place: int) -> dict:
            tree = trees.get()
            try:
                result = examine(chosen[place], tree, Path(temporary, f"{place}.txt"))
            finally:
                trees.put(tree)
            print(f"{result['found']:9.80}  {result['seconds']:5.1f} s  {result['file']}: {result['meaning']}\n"
                  f"{'':20}{result['test']}", flush=True)
            return result

        with ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(one, range(len(chosen))))
    noticed = sum(row["found"] == "noticed" for row in rows)
    for row in rows:
        if row["found"] != "noticed":
            print(f"NOT NOTICED: {row['file']}: {row['meaning']} ({row['test']}): {row['found']}")
    results = [{"measure": "changes that a test notices", "value": noticed, "unit": f"of {len(rows)}", "goal": len(rows),
                "met": noticed == len(rows)}]
    if options.only:  # the file of results holds a whole run
        print(json.dumps({"name": "mutations", "results": results}), flush=True)
    else:
        finish("mutations", results, {"changes": rows})
    raise SystemExit(noticed != len(rows))


if __name__ == "__main__":
    main()
