"""The Python packages that the pack cannot do without. The only list of them is its requirements.txt."""
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

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
