"""Tiny real models of every family: a new family is one entry here."""
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from . import tiny, tiny_flow

MAKERS = {family: module for module in (tiny, tiny_flow) for family in module.FAMILIES}
"""Family → the module whose `make_folder` and `make_single_file` make it."""


class MadeWhenAsked(Mapping):
    """family → what `make(family)` gives, made when it is asked for."""

    def __init__(self, make: Callable):
        self.make, self.made = make, {}

    def __getitem__(self, family: str):
        if family not in self.made:
            self.made[family] = self.make(family)
        return self.made[family]

    def __iter__(self) -> Iterator[str]:
        return iter(MAKERS)

    def __len__(self) -> int:
        return len(MAKERS)


def make_folder(family: str, folder: Path) -> Path:
    return MAKERS[family].make_folder(family, folder)


def make_single_file(family: str, folder: Path, path: Path, **how) -> Path:
    return MAKERS[family].make_single_file(family, folder, path, **how)
