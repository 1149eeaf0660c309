"""What lies in a dataset's folder and its sub-folders: pictures, masks and captions by name, nothing opened yet."""
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

from ..words import shown
from .caption_files import METADATA_FILE
from .captions import CAPTION_SUFFIXES
from .masks import MASK_FOLDER, pair_masks

PICTURE_SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".tif",
                              ".tiff", ".gif"})
FOREIGN_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
                              ".exr", ".hdr"})
"""Pictures for people, which Pillow does not read without further packages."""
LEFT_OUT_FOLDERS = frozenset({MASK_FOLDER, "__macosx"})
NUMBERED_FOLDER = re.compile(r"(-?\d+)_(.*)", re.DOTALL)
"""kohya's `N_name`: the pictures in it come N times an epoch and are captioned with the name."""


@dataclass
class Folder:
    """One folder's files. `name` is "" for the dataset's folder itself, else "sub/" or "sub/deeper/"; `numbered` where
    it lies in an `N_name` folder or is one; `captions` is (stem, lower-case suffix) → file."""

    path: Path
    name: str
    repeats: int = 1
    caption: str = ""
    numbered: bool = False
    pictures: list[Path] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    captions: dict[tuple[str, str], Path] = field(default_factory=dict)
    metadata: Path | None = None

    def caption_files(self, picture: Path) -> list[Path]:
        """The caption files beside a picture, the one that goes before the others first."""
        found = (self.captions.get((picture.stem, suffix)) for suffix in CAPTION_SUFFIXES)
        return [file for file in found if file]


def walk(root: Path, subfolders: bool, numbered: bool, notes: list[str]) -> Iterator[Folder]:
    """The folders of a dataset, in the order of their names, each with its pictures in that order. What cannot be used is
    added to `notes`. Links are followed, but no folder is entered twice, so a loop of links ends.

    Hidden files, and the folders `masks` and `__MACOSX`, are passed over. `numbered`: folders are `N_name` folders.
    """
    entered, waiting = set(), [Folder(root, "")]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder.path)
            if (status.st_dev, status.st_ino) in entered:
                notes.append(f"passed over the folder {shown(folder.name)}: it leads to one that is already read")
                continue
            entered.add((status.st_dev, status.st_ino))
            below = _list(folder, subfolders, notes)
        except OSError as problem:
            notes.append(f"passed over the folder {shown(folder.name) or root.name}: {problem.strerror}")
            continue
        yield folder
        for path in reversed(below):
            child = Folder(path, f"{folder.name}{path.name}/", folder.repeats, folder.caption, folder.numbered)
            number = NUMBERED_FOLDER.fullmatch(path.name) if numbered else None
            if number and int(number[1]) < 1:
                notes.append(f"passed over the folder {shown(child.name)}: its name asks for {number[1]} repeats")
                continue
            if number:
                child.repeats, child.caption, child.numbered = int(number[1]), number[2].strip(), True
            waiting.append(child)


def _list(folder: Folder, subfolders: bool, notes: list[str]) -> list[Path]:
    """Fill in a folder's files; returns the folders in it that are to be read, links behind the others."""
    below, files = [], []
    with os.scandir(folder.path) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        name, suffix, path = entry.name, os.path.splitext(entry.name)[1].lower(), Path(entry.path)
        if name.startswith("."):
            continue
        ours = suffix in PICTURE_SUFFIXES or suffix in CAPTION_SUFFIXES or suffix in FOREIGN_SUFFIXES
        kind = _kind(entry)
        if kind == "folder" and subfolders and name.lower() not in LEFT_OUT_FOLDERS and _is_text(name):
            below.append((entry.is_symlink(), name, path))
        elif kind == "file" and name == METADATA_FILE:
            folder.metadata = path
        elif not ours and not (kind == "folder" and subfolders):
            continue
        elif not _is_text(name):
            notes.append(f"skipped {shown(folder.name + name)}: its name is not written in Unicode; rename it")
        elif kind == "folder":
            if not subfolders:
                notes.append(f"skipped {shown(folder.name + name)}: it is a folder")
        elif kind != "file":
            notes.append(f"skipped {shown(folder.name + name)}: it is {kind}")
        elif suffix in FOREIGN_SUFFIXES:
            notes.append(f"skipped {shown(folder.name + name)}: {suffix[1:].upper()} files cannot be read; save it as PNG "
                         "or JPEG")
        elif suffix in CAPTION_SUFFIXES:
            folder.captions.setdefault((path.stem, suffix), path)
        else:
            files.append(path)
    folder.pictures, folder.masks = pair_masks(files, _mask_files(folder.path / MASK_FOLDER))
    return [path for _, _, path in sorted(below)]


def _kind(entry: os.DirEntry) -> str:
    """"file", "folder", or in words what else it is. Pipes and devices are never opened: that could wait for ever."""
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "folder"
        entry.stat()
    except OSError:
        return "a link that leads nowhere" if entry.is_symlink() else "not accessible"
    return "no file, but a pipe or a device"


def _is_text(name: str) -> bool:
    """Whether a name can be written down: Linux allows any bytes in it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _mask_files(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(
                Path(entry.path) for entry in entries
                if os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES and not entry.name.startswith(".")
                and _kind(entry) == "file" and _is_text(entry.name))
    except OSError:  # most datasets have none
        return []


def folder_state(root: Path, subfolders: bool) -> list[tuple[str, int, int]]:
    """(path, size in bytes, time of change in ns) of every file that a dataset is made of. Nothing is opened."""
    state = []
    for folder in walk(root, subfolders, False, []):
        files = [*folder.pictures, *folder.masks.values(), *folder.captions.values()]
        for file in [*files, folder.metadata] if folder.metadata else files:
            try:
                status = file.stat()
            except OSError:  # gone meanwhile
                continue
            state.append((str(file), status.st_size, status.st_mtime_ns))
    return sorted(state)
