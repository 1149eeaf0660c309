"""What a change is."""
from typing import NamedTuple


class Mutation(NamedTuple):
    """`original` stands once in `file`; with `changed` in its place `test`, a path in tests/ and a name as pytest writes
    them, must fail."""

    meaning: str
    file: str
    original: str
    changed: str
    test: str
