"""Run the whole test suite from a fresh clone with one command; arguments go to pytest.

    python scripts/test.py                      everything
    python scripts/test.py tests/unit -k seed   a part
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys

from environment import ROOT, Environment, prepare
from failure import Failure, run_script

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> int:
    """Prepare the environment with the test tools and return pytest's exit code."""
    environment = prepare(test_tools=True)
    if (environment.root / "tests" / "browser").is_dir():
        ensure_chromium()
    return run_pytest(environment, sys.argv[1:])


def run_pytest(environment: Environment, arguments: list[str]) -> int:
    """Run pytest in the repository over all tests, or over those that the arguments name."""
    os.chdir(environment.root)
    names_tests = any(os.path.exists(argument.split("::")[0]) for argument in arguments)
    selection = [] if names_tests else ["tests", *in_parallel()]
    # With the repository as its root, pytest would import the pack's __init__.py as a package of tests.
    options = ["--import-mode=importlib", f"--rootdir={environment.root / 'tests'}"]
    return environment.run("-m", "pytest", *options, *selection, *arguments)


def in_parallel() -> list[str]:
    """Options for several files of tests at once, each worker with a server of its own. One thread of torch for each:
    tiny models gain nothing from more, and threads that outnumber the cores wait for each other. Files come in their order,
    browser and host first: by their numbers of tests, files with few long ones would come last, and a worker would wait."""
    workers = min(os.cpu_count() or 1, 4)
    if workers == 1:
        return []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return [f"--numprocesses={workers}", "--dist=loadfile", "--no-loadscope-reorder"]


def ensure_chromium() -> None:
    """Install Chromium for the browser tests where the system's package manager can do it unasked."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    if not (shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0):
        raise Failure("The browser tests need Chromium: install it with the system's package manager and try again.")
    log = ROOT / ".comfyui" / "chromium.log"
    print("Installing Chromium ...", flush=True)
    unattended = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("wb") as output:
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=unattended)
    if result.returncode:
        raise Failure(f"Chromium could not be installed: install it by hand and try again; the reason is in {log}.")


if __name__ == "__main__":
    run_script(main)
