"""What lies in a dataset's folder and its sub-folders: images, masks and captions by name, nothing opened yet."""
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..words import shown
from .captions.caption_files import METADATA_FILE
from .captions.caption_pairing import READ_SUFFIXES, Pairing, pair_captions
from .images.masks import MASK_FOLDER, pair_masks
from .projects import NUMBERED_FOLDER, chosen_folders

IMAGE_SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".tif",
                            ".tiff", ".gif"})
FOREIGN_SUFFIXES = frozenset({".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
                              ".exr", ".hdr"})
"""Images for people, which Pillow does not read without further packages."""
LEFT_OUT_FOLDERS = frozenset({MASK_FOLDER, "__macosx"})
MANY_REPEATS = 1000
"""From here on the number in a folder's name is rather a year."""
LEADS_OUT = "it is a link that leads out of the dataset's folder, and is not followed"


@dataclass
class Folder:
    """One folder's files. `name` is "" for the dataset's folder itself, else "sub/" or "sub/deeper/"; `numbered` where
    it lies in an `N_name` folder or is one; `home` is the real folder that its links may lead into: the dataset's, or
    the one behind the linked folder that it lies in."""

    path: Path
    name: str
    home: str
    repeats: int = 1
    caption: str = ""
    numbered: bool = False
    images: list[Path] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    texts: list[Path] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    """Stems of images that cannot be read."""
    metadata: Path | None = None

    @cached_property
    def captions(self) -> Pairing:
        return pair_captions(self.texts, self.images, self.foreign)


def walk(root: Path, subfolders: bool, numbered: bool, notes: list[str], others: Sequence[Path] = ()) -> Iterator[Folder]:
    """The folders of a dataset, in the order of their names, each with its images in that order. What cannot be used is
    added to `notes`.

    Hidden files, and the folders `masks` and `__MACOSX`, are passed over; of a project of kohya's trainers, the folder of
    images is read (see `projects`). `numbered`: folders are `N_name` folders. Links are followed where they stay inside the
    dataset's folder, those to folders also into `others`; no folder is entered twice, so a loop of links ends.
    """
    home = os.path.realpath(root)
    allowed = [home, *map(os.path.realpath, others)]
    entered, waiting = set(), [Folder(root, "", home)]
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
        chosen, by_name = chosen_folders(folder, below, subfolders, notes)
        subfolders, numbered = subfolders or by_name, numbered or by_name
        yield folder
        for path in reversed(chosen):
            child = Folder(path, f"{folder.name}{path.name}/", folder.home, folder.repeats, folder.caption, folder.numbered)
            real = os.path.realpath(path)
            if not inside(real, folder.home):  # a link, or a junction of Windows
                if not any(inside(real, other) for other in allowed):
                    notes.append(f"passed over the folder {shown(child.name)}: {LEADS_OUT}; ComfyUI's folder settings do "
                                 "not name the folder behind it")
                    continue
                child.home = real
            number = NUMBERED_FOLDER.fullmatch(path.name) if numbered else None
            if number and int(number[1]) < 1:
                notes.append(f"passed over the folder {shown(child.name)}: its name asks for {number[1]} repeats")
                continue
            if number:
                child.repeats, child.caption, child.numbered = int(number[1]), number[2].strip(), True
                if child.repeats >= MANY_REPEATS:
                    notes.append(f"the folder {shown(child.name)} comes {number[1]} times in a round, as its name says; "
                                 "rename it if that is a date")
            waiting.append(child)


def inside(path: str, folder: str) -> bool:
    """Whether a real path is a folder or lies in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _list(folder: Folder, subfolders: bool, notes: list[str]) -> list[Path]:
    """Fill in a folder's files; returns the folders in it, links behind the others."""
    below, files = [], []
    with os.scandir(folder.path) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        name, suffix, path = entry.name, os.path.splitext(entry.name)[1].lower(), Path(entry.path)
        if name.startswith("."):
            continue
        ours = suffix in IMAGE_SUFFIXES or suffix in READ_SUFFIXES or suffix in FOREIGN_SUFFIXES or name == METADATA_FILE
        kind = _kind(entry, folder.home)
        if kind == "folder" and name.lower() not in LEFT_OUT_FOLDERS and is_text(name):
            below.append((entry.is_symlink(), name, path))
            if subfolders or not ours:
                continue
        elif not ours and not (kind == "folder" and subfolders):
            continue
        if not is_text(name):
            notes.append(f"skipped {shown(folder.name + name)}: its name is not written in Unicode; rename it")
        elif kind == "folder":
            if not subfolders:
                notes.append(f"skipped {shown(folder.name + name)}: it is a folder")
        elif kind != "file":
            notes.append(f"skipped {shown(folder.name + name)}: {kind}")
        elif name == METADATA_FILE:
            folder.metadata = path
        elif suffix in FOREIGN_SUFFIXES:
            folder.foreign.add(path.stem)
            notes.append(f"skipped {shown(folder.name + name)}: {suffix[1:].upper()} files cannot be read; save it as PNG "
                         "or JPEG")
        elif suffix in READ_SUFFIXES:
            folder.texts.append(path)
        else:
            files.append(path)
    folder.images, folder.masks = pair_masks(files, _mask_files(folder, notes))
    return [path for _, _, path in sorted(below)]


def _kind(entry: os.DirEntry, home: str) -> str:
    """"file", "folder", or in words what else it is. Pipes and devices are never opened: that could wait for ever."""
    try:
        if entry.is_file():
            return LEADS_OUT if entry.is_symlink() and not inside(os.path.realpath(entry.path), home) else "file"
        if entry.is_dir():
            return "folder"
        entry.stat()
    except OSError:
        return "it is a link that leads nowhere" if entry.is_symlink() else "it is not accessible"
    return "it is no file, but a pipe or a device"


def is_text(name: str) -> bool:
    """Whether a name can be written down: Linux allows any bytes in it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _mask_files(folder: Folder, notes: list[str]) -> list[Path]:
    path, masks = folder.path / MASK_FOLDER, []
    try:
        with os.scandir(path) as entries:
            entries = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # most datasets have none
        return []
    if not inside(os.path.realpath(path), folder.home):
        notes.append(f"passed over the folder {shown(folder.name + MASK_FOLDER)}: {LEADS_OUT}")
        return []
    for entry in entries:
        if (os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
                and is_text(entry.name)):
            kind = _kind(entry, folder.home)
            if kind == "file":
                masks.append(Path(entry.path))
            elif kind == LEADS_OUT:
                notes.append(f"skipped the mask {shown(f'{folder.name}{MASK_FOLDER}/{entry.name}')}: {kind}")
    return masks


def folder_state(root: Path, subfolders: bool, others: Sequence[Path] = ()) -> list[tuple[str, int, int]]:
    """(path, size in bytes, time of change in ns) of every file that a dataset is made of. Nothing is opened."""
    state = []
    for folder in walk(root, subfolders, False, [], others):
        files = [*folder.images, *folder.masks.values(), *folder.texts]
        for file in [*files, folder.metadata] if folder.metadata else files:
            try:
                status = file.stat()
            except OSError:  # gone meanwhile
                continue
            state.append((str(file), status.st_size, status.st_mtime_ns))
    return sorted(state)
