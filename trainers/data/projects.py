"""Folders as kohya's trainers want them: which of them hold images to train, which others."""
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ..words import clause, shown

NUMBERED_FOLDER = re.compile(r"(-?\d{1,9})_(.*)", re.DOTALL)
"""kohya's `N_name`: the images in it come N times an epoch and are captioned with the name."""
IMAGE_FOLDERS = ("img", "image", "images")
CLASS_FOLDERS = frozenset({"reg", "regularization"} | {
    f"{name}_{kind}" for name in ("reg", "regularization", "regularization") for kind in ("img", "image", "images")})
OTHER_FOLDERS = frozenset({"log", "logs", "model", "models", "sample", "samples"})


class Files(Protocol):
    """What is looked at of a `sources.Folder`."""

    name: str
    path: Path
    images: list[Path]
    masks: dict[str, Path]
    texts: list[Path]


def chosen_folders(folder: Files, below: Sequence[Path], subfolders: bool, notes: list[str]) -> tuple[list[Path], bool]:
    """(which of the folders `below` `folder` belong to the dataset, whether their names are `N_name` although
    nobody said so). Notes say what is left out and why.

    A project of kohya's trainers (img, reg, log, model) is its folder of images, also where sub-folders are not asked for,
    as it has no images of its own. Regularization images are never training images.
    """
    project = _image_folder(below) if subfolders or not folder.images else None
    classes = [path for path in below if path.name.lower() in CLASS_FOLDERS]
    if not project and not (subfolders and any(NUMBERED_FOLDER.fullmatch(path.name) for path in below)):
        return list(below) if subfolders else [], False
    for path in classes:
        notes.insert(0, f"the folder {shown(f'{folder.name}{path.name}')} holds regularization images, which are not "
                     f"trained as the subject: choose {shown(f'{folder.path.name}/{path.name}')} in another Load Image "
                     "Dataset, and connect that to class_images of a Train node")
    if not project:
        return [path for path in below if path not in classes], False
    where = f"the folder {shown(folder.name)}" if folder.name else "the folder"
    notes.insert(0, f"{where} is a project of kohya's trainers: of it, {project.name} is read" + (
        "" if subfolders else ", with repeats by the names of its folders"))
    if folder.images:
        notes.insert(1, clause(len(folder.images), "image", f"are not read, as {project.name} is beside it"))
        folder.images, folder.masks, folder.texts = [], {}, []
    return [project], not subfolders


def class_folder(root: Path) -> str | None:
    """The name of the folder of regularization images in a project of kohya's trainers."""
    try:
        with os.scandir(root) as entries:
            below = [Path(entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return None
    if not _image_folder(below) and not any(NUMBERED_FOLDER.fullmatch(path.name) for path in below):
        return None
    return next((path.name for path in sorted(below) if path.name.lower() in CLASS_FOLDERS), None)


def _image_folder(below: Sequence[Path]) -> Path | None:
    """The folder of images, where these folders are those of a project."""
    names = {path.name.lower(): path for path in below}
    images = next((names[name] for name in IMAGE_FOLDERS if name in names), None)
    if images is None or not (names.keys() & (CLASS_FOLDERS | OTHER_FOLDERS)):
        return None
    return images if names.keys() & CLASS_FOLDERS or _has_numbered(images) else None


def _has_numbered(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(NUMBERED_FOLDER.fullmatch(entry.name) and entry.is_dir() for entry in entries)
    except OSError:
        return False
