"""Blocks of a denoiser as people type them: "down", "mid", "up.1", "double.0-9" and, with numbers, "down=4, up.1=8".

A name without a number means all blocks of that side; the more exact name wins.
"""
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

NAME = r"[a-z]+(?:\.\d{1,4}(?:-\d{1,4})?)?"


def _names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(part.strip().lower() for part in value.split(",") if part.strip())
    for name in names:
        if not re.fullmatch(NAME, name):
            raise ValueError(f"{name!r} is no block; write for example: down, mid, up.0")
    return names


def _values(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    pairs = []
    for part in (each.strip() for each in value.split(",") if each.strip()):
        match = re.fullmatch(rf"({NAME})\s*=\s*(\d+(?:\.\d+)?)", part.lower())
        if not match:
            raise ValueError(f"{part!r} is no block with a number; write for example: down=4, mid=16, up.1=8")
        pairs.append((match[1], float(match[2])))
    return tuple(pairs)


BlockNames = Annotated[tuple[str, ...], BeforeValidator(_names)]
BlockValues = Annotated[tuple[tuple[str, float], ...], BeforeValidator(_values)]


def covers(name: str, block: str) -> bool:
    """Whether the typed name means this block of the model ("up" covers "up.1", and "up.0-2" too)."""
    side, _, numbers = name.partition(".")
    if "-" in numbers:
        first, last = map(int, numbers.split("-"))
        own, _, number = block.partition(".")
        return own == side and number.isdecimal() and first <= int(number) <= last
    return block == name or block.startswith(name + ".")


def value_of(values: Sequence[tuple[str, float]], block: str, default: float) -> float:
    """The number typed for the most exact name that covers `block`."""
    fitting = [((name == block, "." in name), number) for name, number in values if covers(name, block)]
    return max(fitting)[1] if fitting else default
