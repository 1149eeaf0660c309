"""Captions written beside their images, with a backup of every file that changes, and taken back again.

Each write of a folder is a dated folder in BACKUPS, with copies of the files as they were and a journal, which is there
before the first file is touched: a write that was cut off can be taken back like any other.
"""
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import UserError
from ...files import read_json, temporary_beside, write_json
from ...spec import DatasetImage, DatasetSpec
from ...words import clause, listed, one_line, shown
from ..sources import inside
from .trigger_word import CAPTION_SUFFIXES, read_caption

BACKUPS = ".caption_backups"
JOURNAL = "journal.json"


@dataclass(frozen=True)
class Change:
    """One caption file: `old` and `new` are its captions (None: no such file), `image` the name of the image."""

    file: Path
    image: str
    old: str | None
    new: str


@dataclass(frozen=True)
class Plan:
    """What would be written, and what not and why. `dataset` has the captions as the folder has them afterwards."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    dataset: DatasetSpec
    unchanged: int


def caption_file(image: Path) -> Path:
    """Where the caption of an image is, or would be written."""
    files = [image.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    return next((file for file in files if file.is_file()), files[0])


def plan_write(dataset: DatasetSpec, folders: Iterable[Path], only_missing: bool = False, edits: str = "") -> Plan:
    """Compare the captions with the files beside the images. `folders` are the dataset folders of the images.

    `edits` identifies what made these captions. A file that the last write made by the same edits, and that is as it was
    written, is left alone: it has been read and edited once more on its way here, and its captions would grow with each
    queue.
    """
    folders = list(folders)
    homes = [os.path.realpath(folder) for folder in folders]
    finished = {folder / entry["file"]: entry for folder in folders for entry in _last_files(folder, edits)}
    by_file: dict[Path, list[DatasetImage]] = {}
    for image in dataset.images:
        by_file.setdefault(caption_file(Path(image.path)), []).append(image)
    changes, notes, as_written, unchanged = [], [], {}, 0
    for file, images in by_file.items():
        captions, names = {one_line(image.caption) for image in images}, sorted({each.name for each in images})
        if file.is_symlink() and not any(inside(os.path.realpath(file), home) for home in homes):
            notes.append(f"{shown(file.name)} is a link that leads out of the dataset's folder: neither read nor written")
            continue
        old = read_caption(Path(images[0].path)) if file.is_file() else None
        if file in finished and digest(file) == finished[file]["after"]:
            as_written[file] = finished[file]["text"]
            unchanged += 1
        elif len(captions) > 1:
            whose = (f"{' and '.join(names)} share the file {shown(file.name)}" if len(names) > 1
                     else f"{names[0]} occurs twice")
            notes.append(f"{whose} and have different captions: not written; " + (
                "rename one of the images" if len(names) > 1 else "give it one caption"))
        elif old == (new := captions.pop()) or (old is None and not new) or (only_missing and old is not None):
            unchanged += 1
        else:
            changes.append(Change(file, images[0].name, old, new))
    if as_written:
        notes.append(clause(len(as_written), "caption", "were written by the same nodes before and left as written: edited "
                            "a second time, it would not be what was asked for. Undo Write Captions takes that back"))
    images = tuple(image.model_copy(update={"caption": as_written[file]})
                   if (file := caption_file(Path(image.path))) in as_written else image
                   for image in dataset.images)
    return Plan(tuple(changes), tuple(notes), dataset.model_copy(update={"images": images}), unchanged)


def write_sidecars(plan: Plan, folders: Sequence[Path], edits: str = "") -> list[Path]:
    """Write the changes of a plan, UTF-8, each file whole or not at all. Returns the backup folders, one for each dataset
    folder that was changed. Raises UserError when a folder cannot be written."""
    backups = []
    for folder in folders:
        changes = [change for change in plan.changes if change.file.is_relative_to(folder)]
        if not changes:
            continue
        try:
            backups.append(_write(folder, changes, edits))
        except PermissionError as problem:
            raise UserError(f"The folder {folder.name!r} cannot be written: {problem.strerror}. Give ComfyUI the right to "
                            "write there.") from None
    return backups


def _write(folder: Path, changes: Sequence[Change], edits: str) -> Path:
    backup, entries = _new_backup(folder), []
    for change in changes:
        name = change.file.relative_to(folder)
        content = _content(change.new)
        if change.file.is_file():
            (backup / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(change.file, backup / name)
        entries.append({"file": name.as_posix(), "before": digest(backup / name), "text": change.new,
                        "after": hashlib.sha256(content).hexdigest()})
    write_json(backup / JOURNAL, {"written": time.strftime("%Y-%m-%d %H:%M:%S"), "edits": edits, "undone": False,
                                  "files": entries})
    for change in changes:
        with temporary_beside(change.file) as temporary:
            temporary.write_bytes(_content(change.new))
            if change.file.exists():
                shutil.copymode(change.file, temporary)
            os.replace(temporary, change.file)
    return backup


def _content(caption: str) -> bytes:
    return f"{caption}\n".encode()


def _new_backup(folder: Path) -> Path:
    """A new folder, whose name sorts behind those of all earlier writes."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        path = folder / BACKUPS / f"{stamp}_{number:03d}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
    raise UserError(f"The folder {folder.name!r} has too many backups of this second. Queue again.")


def digest(file: Path) -> str | None:
    """SHA-256 of a file; None when it is not there."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


# ---- taking it back ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Undo:
    """The last write of a folder that was not taken back: what would be restored or removed, and which files were changed
    since, so that they are no longer what was written."""

    backup: Path
    written: str
    restored: tuple[str, ...]
    removed: tuple[str, ...]
    changed_since: tuple[str, ...]
    earlier: int = field(default=0)
    """Writes before it that can be taken back too."""


def last_write(folder: Path) -> Undo | None:
    """What Undo would do, or None when there is nothing to take back."""
    open_writes = [(path, journal) for path, journal in _journals(folder) if not journal["undone"]]
    if not open_writes:
        return None
    path, journal = open_writes[-1]
    restored, removed, changed = [], [], []
    for entry in journal["files"]:
        now = digest(_inside(folder, entry["file"]))
        if now not in (entry["before"], entry["after"]):
            changed.append(entry["file"])
        else:
            (removed if entry["before"] is None else restored).append(entry["file"])
    return Undo(path, journal["written"], tuple(restored), tuple(removed), tuple(changed), len(open_writes) - 1)


def undo_last_write(folder: Path, keep_changed: bool = False) -> Undo:
    """Put the caption files of a dataset folder back, byte by byte, as they were before the last write that was not taken
    back; files that it had made are removed.

    Raises UserError where there is nothing to take back or where files were changed since, unless `keep_changed`: those
    then stay as they are.
    """
    undo = last_write(folder)
    if undo is None:
        raise UserError(f"Nothing was written into the folder {folder.name!r} that could be taken back.")
    if undo.changed_since and not keep_changed:
        count = len(undo.changed_since)
        raise UserError(
            f"Nothing was taken back, because in {folder.name!r} {clause(count, 'file', 'were changed')} after "
            f"the write of {undo.written}: {listed(undo.changed_since, 8)}. Choose to keep those and take back the rest, "
            f"or copy what you want from {BACKUPS}/{undo.backup.name} in that folder.")
    journal = dict(_journals(folder))[undo.backup]
    before = {entry["file"]: entry["before"] for entry in journal["files"]}
    for name in undo.restored:
        if digest(_inside(undo.backup, name)) != before[name]:
            raise UserError(f"The backup {BACKUPS}/{undo.backup.name}/{name} is damaged or missing. Nothing was taken back.")
    for name in undo.restored:
        target = _inside(folder, name)
        with temporary_beside(target) as temporary:
            shutil.copy2(_inside(undo.backup, name), temporary)
            os.replace(temporary, target)
    for name in undo.removed:
        _inside(folder, name).unlink(missing_ok=True)
    write_json(undo.backup / JOURNAL, {**journal, "undone": True})
    return undo


def _journals(folder: Path) -> list[tuple[Path, dict]]:
    """(backup folder, journal), the oldest first. A folder without a readable journal was never written from."""
    found = [(path.parent, read_json(path)) for path in sorted((folder / BACKUPS).glob(f"*/{JOURNAL}"))]
    return [(path, journal) for path, journal in found if isinstance(journal, dict) and "files" in journal]


def _last_files(folder: Path, edits: str) -> list[dict]:
    """The files of the latest writes in a row that were by the same edits."""
    files, written = {}, [journal for _, journal in _journals(folder) if not journal["undone"]]
    while edits and written and written[-1]["edits"] == edits:
        files = {entry["file"]: entry for entry in written.pop()["files"]} | files
    return list(files.values())


def _inside(folder: Path, name: str) -> Path:
    """A file of the journal, which is no more than a file that anybody can write: it names nothing outside its folder."""
    path = folder / name
    if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"The journal of the folder {folder.name!r} names {name!r}, which lies outside it. Nothing was "
                        "taken back.")
    return path
