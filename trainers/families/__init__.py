"""The registry of model families. A new family is one file and one line here.

Importing this package is light; a family's libraries are imported when it is asked for.
"""
from importlib import import_module

from ..errors import UserError
from .protocol import Family

WHERE = {
    "sd1": ("stable_diffusion", "SD1"),
    "sd2": ("stable_diffusion", "SD2"),
    "sdxl": ("sdxl", "SDXL"),
}
NAMES = tuple(WHERE)
_registered: dict[str, Family] = {}


def register(family: Family):
    """Make a family known that comes from elsewhere, with the names of its layers."""
    _registered[family.name] = family


def unregister(name: str):
    _registered.pop(name, None)


def get(name: str) -> Family:
    """The family of that name."""
    if name in _registered:
        return _registered[name]
    if name not in WHERE:
        raise UserError(f"The model family {name!r} is unknown. Known families: {', '.join(NAMES)}.")
    module, attribute = WHERE[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def all_families() -> list[Family]:
    """Every family, in the order of the registry."""
    return [get(name) for name in (*WHERE, *_registered)]
