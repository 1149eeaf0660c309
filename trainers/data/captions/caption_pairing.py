"""Which text file is the caption of which image of its folder, by names alone."""
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...words import folded
from .trigger_word import CAPTION_SUFFIXES

READ_SUFFIXES = (*CAPTION_SUFFIXES, ".tags")
"""Suffixes of caption files, the one that goes before the others first."""


@dataclass
class Pairing:
    """`of`: name of an image → its caption files, the one that counts first. `inexact`: files that are read although their
    names are not those of their images with `.txt` or `.caption`. `lost`: files that nobody reads."""

    of: dict[str, list[Path]] = field(default_factory=dict)
    inexact: list[Path] = field(default_factory=list)
    lost: list[Path] = field(default_factory=list)


def pair_captions(files: Sequence[Path], images: Sequence[Path], passed_over: Collection[str] = ()) -> Pairing:
    """Give caption files to the images of their folder: those of an image's name (`a.txt` for `a.png`), else those of its
    whole name (`a.png.txt`), else those that differ in case or in how accents are encoded, where that means one image.

    Files of a name in `passed_over`, without suffix, belong to images that cannot be read, and are not lost.
    """
    stems, names, loose = _by_key(images, lambda path: path.stem), {path.name: [path] for path in images}, None
    pairing, found = Pairing(), {}
    for file in sorted(files, key=_rank):
        owners, distance = stems.get(file.stem), 0
        if not owners:
            owners, distance = names.get(file.stem), 1
        if not owners:
            if loose is None:
                loose = _by_key(images, lambda path: folded(path.stem)), _by_key(images, lambda path: folded(path.name))
            near = [path for table in loose for path in table.get(folded(file.stem), ())]
            owners, distance = near if len({path.stem for path in near}) == 1 else [], 2
        if owners:
            found.setdefault(distance, []).append((file, owners))
        elif file.stem not in passed_over:
            pairing.lost.append(file)
    for distance, pairs in sorted(found.items()):
        closer = set(pairing.of)
        for file, owners in pairs:
            owners = [path.name for path in owners if path.name not in closer]
            for name in owners:
                pairing.of.setdefault(name, []).append(file)
            if not owners:
                pairing.lost.append(file)
            elif distance or file.suffix.lower() not in CAPTION_SUFFIXES:
                pairing.inexact.append(file)
    pairing.inexact.sort()
    pairing.lost.sort()
    return pairing


def _rank(file: Path) -> tuple[int, bool, str]:
    """`.txt` goes before `.caption`, `a.txt` before `a.TXT`."""
    return READ_SUFFIXES.index(file.suffix.lower()), file.suffix != file.suffix.lower(), file.name


def _by_key(images: Sequence[Path], key: Callable[[Path], str]) -> dict[str, list[Path]]:
    table: dict[str, list[Path]] = {}
    for path in images:
        table.setdefault(key(path), []).append(path)
    return table
