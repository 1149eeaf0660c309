"""The Python packages that the pack cannot do without. The only list of them is its requirements.txt."""
import re
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from .errors import UserError

FILE = Path(__file__).parents[1] / "requirements.txt"


def requirements() -> list[str]:
    """Their names on the package index."""
    return re.findall(r"^[\w.-]+", FILE.read_text(encoding="utf-8"), re.MULTILINE)


def missing_requirements() -> list[str]:
    """Those that are not installed in this Python. Imports none."""
    return [name for name in requirements() if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def require_version(package: str, wanted: str, what: str):
    """Raise UserError when the installed version of a package is older than what needs `wanted`, for example "0.36"."""
    installed = version(package)
    if _numbers(installed) < _numbers(wanted):
        raise UserError(f"{what} needs {package} {wanted} or newer, and {installed} is installed. Update it with the Python "
                        "that runs ComfyUI and start ComfyUI again.")


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", release)[:3]))
