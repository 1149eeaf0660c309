"""Virtual environment and pip, with progress lines, a log, and repair of what an interruption left behind."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

from failure import Failure


class Installer:
    """Runs pip inside one virtual environment and keeps everything it says in a log file."""

    def __init__(self, folder: Path, log: Path):
        self.folder = folder
        self.log = log
        self.python = venv_python(folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")

    def create_environment(self) -> None:
        """Make the virtual environment, or make it again when its Python does not work any more."""
        if self._succeeds([self.python, "-m", "pip", "--version"]):
            return
        if self.folder.exists() and self.folder.resolve() == Path(sys.prefix).resolve():
            raise Failure(f"{self.folder} is damaged: delete it and run this again with the Python outside it.")
        print(f"Creating {self.folder}", flush=True)
        try:
            venv.EnvBuilder(clear=True, with_pip=True, symlinks=os.name != "nt").create(self.folder)
        except (OSError, subprocess.CalledProcessError) as error:
            raise Failure(
                f"No virtual environment could be made in {self.folder} ({error}): install Python's venv module"
                " (on Debian and Ubuntu the package python3-venv) and run this again."
            ) from None

    def install(self, what: str, *arguments: str) -> None:
        """`pip install`, shown to the person as `what`."""
        self.run(f"Installing {what}", self._pip("install", *arguments))

    def install_first(self, what: str, *candidates: str) -> None:
        """Install the first of several requirements that the package index has."""
        for candidate in candidates[:-1]:
            offset = self.log.stat().st_size
            try:
                return self.install(what, candidate)
            except Failure:
                if "No matching distribution" not in self.log.read_text(encoding="utf-8", errors="replace")[offset:]:
                    raise
        return self.install(what, candidates[-1])

    def download(self, what: str, requirement: str, folder: Path) -> Path:
        """`pip download` one wheel without its dependencies and return its path."""
        arguments = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
        self.run(f"Downloading {what}", self._pip("download", *arguments))
        return next(folder.glob("*.whl"))

    def imports(self, module: str) -> bool:
        """Whether `module` can be imported in the environment."""
        return self._succeeds([self.python, "-c", f"import {module}"])

    def site_packages(self) -> Path:
        """The folder that holds the environment's packages."""
        question = "import sysconfig; print(sysconfig.get_path('purelib'))"
        return Path(subprocess.check_output([self.python, "-c", question], text=True).strip())

    def version(self, package: str) -> str:
        """The installed version of `package`."""
        question = f"from importlib.metadata import version; print(version({package!r}))"
        return subprocess.check_output([self.python, "-c", question], text=True).strip()

    def run(self, what: str, command: list[str | Path]) -> None:
        """Run a command, show `what` with the elapsed seconds, and fail with one sentence."""
        started = time.monotonic()
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=child_environment())
            try:
                show_until_done(what, process, started)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode:
            raise Failure(
                f"{what} did not work ({self._reason()}): check the internet connection and the free disk space, then"
                f" run this again; everything pip said is in {self.log}."
            )

    def _pip(self, *arguments: str) -> list[str | Path]:
        quiet = ["--disable-pip-version-check", "--no-input"]
        return [self.python, "-m", "pip", arguments[0], *quiet, "--progress-bar", "off", *arguments[1:]]

    def _reason(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("ERROR:")]
        return (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip().rstrip(".")

    def _succeeds(self, command: list[str | Path]) -> bool:
        try:
            return subprocess.run(command, capture_output=True, env=child_environment()).returncode == 0
        except OSError:
            return False


def venv_python(folder: Path) -> Path:
    """Where a virtual environment keeps its Python."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def child_environment() -> dict[str, str]:
    """This process's environment without what would leak other packages into the virtual environment."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def show_until_done(what: str, process: subprocess.Popen, started: float) -> None:
    """Wait for `process`; on a terminal the line counts the seconds, elsewhere it is written once."""
    interactive = sys.stdout.isatty()
    if not interactive:
        print(f"{what} ...", flush=True)
    while True:
        seconds = time.monotonic() - started
        if interactive:
            print(f"\r{what} ... {seconds:.0f} s", end="", flush=True)
        try:
            process.wait(timeout=1)
            break
        except subprocess.TimeoutExpired:
            continue
    seconds = time.monotonic() - started
    print(f"\r{what} ... {seconds:.0f} s" if interactive else f"{what}: {seconds:.0f} s", flush=True)


def remove_half_installed(site_packages: Path) -> list[str]:
    """Forget packages whose installation was cut off, so that pip installs them again.

    pip writes RECORD last, with the line of INSTALLER in it. Without it pip would call the package installed, and could
    not remove it either.
    """
    removed = []
    for folder in [*site_packages.glob("*.dist-info"), *site_packages.glob("~*")]:
        record = folder / "RECORD"
        complete = record.is_file() and "INSTALLER" in record.read_text(encoding="utf-8", errors="replace")
        if folder.name.startswith("~") or not complete:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed
