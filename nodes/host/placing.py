"""Finished files where the host's loaders find them: put there over nothing, put back when they are gone, and taken away
again when they were there for the meantime only."""
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import folder_paths
from PIL import Image

from ...trainers.files import place_copy, read_json, temporary_beside, write_json
from .folders import artifact_folder
from .lora_files import PREVIEWS

MEANWHILE = "placed.json"
"""In the folder of a run: the files of a cancelled run that lie among the others until it is finished."""

_watched: dict[str, set[Path]] = {}
_lost: Counter[str] = Counter()


def place(kind: str, file: Path, stem: str) -> Path:
    """Copy a finished file to where every loader finds it, over nothing; returns where it lies, under the name that the
    loaders list. A file that lies elsewhere on the loaders' paths under this name already, moved there perhaps, is enough.

    Checkpoints are linked rather than copied where the disk can: they are gigabytes.
    """
    folder, *others = _folders(kind)
    return place_copy(file, folder, stem, others, kind in ("checkpoint", "diffusion_model"))


def _folders(kind: str) -> list[Path]:
    """Where loaders look for files of a kind; first the folder that files are placed in."""
    first, folders = artifact_folder(kind), [Path(other) for other in folder_paths.get_folder_paths(f"{kind}s")]
    if kind == "embedding":  # the host looks for a prompt's word in all sub-folders, in no certain order
        folders += [below for folder in folders for below in folder.rglob("*") if below.is_dir()]
    return [first, *(folder for folder in folders if folder != first)]


def is_taken(kinds: Sequence[str], name: str) -> bool:
    """Whether a loader of one of these kinds lists a file of this name: a new run shall have another, which its file has
    too."""
    return any((folder / f"{name}{suffix}").exists() for kind in kinds for folder in _folders(kind)
               for suffix in (".safetensors", ".pt"))


def place_preview(file: Path, image: Image.Image):
    """Put an image beside a placed file, where ComfyUI and LoRA managers look for it, unless there is one already."""
    if any(file.with_name(file.stem + suffix).exists() for suffix in PREVIEWS):
        return
    target = file.with_name(f"{file.stem}.preview.png")
    with temporary_beside(target) as temporary, suppress(OSError):  # a file system without links does without
        image.save(temporary)
        os.link(temporary, target)  # fails if another process took the name meanwhile


def watch(name: str, paths: Iterable[Path]):
    """Remember what a graph with the run name `name` has left on the disk."""
    _watched.setdefault(name, set()).update(paths)


def losses_of_files(name: str | None) -> int:
    """How often such files were found missing. A node hands this to the host as part of what it depends on: the host asks it
    again then, instead of answering from its cache, and it puts back what is missing."""
    if name is None:
        return 0
    gone = {path for path in _watched.get(name, ()) if not path.exists()}
    if gone:
        _watched[name] -= gone
        _lost[name] += 1
    return _lost[name]


def place_meanwhile(run_folder: Path, files: Iterable[tuple[str, Path]]) -> list[Path]:
    """Place the files of a cancelled run, given as (kind, file), instead of those that were placed for it before."""
    placed = [place(kind, file, file.stem) for kind, file in files]
    remove_meanwhile(run_folder, keep=placed)
    write_json(run_folder / MEANWHILE, [{"path": str(path), **_state(path)} for path in placed])
    return placed


def remove_meanwhile(run_folder: Path, keep: Sequence[Path] = ()):
    """Take the files of a cancelled run away again, if they still are what was placed."""
    for entry in read_json(run_folder / MEANWHILE) or []:
        path = Path(entry["path"])
        if path not in keep and path.exists() and _state(path) == {name: entry[name] for name in ("bytes", "modified")}:
            path.unlink()
    (run_folder / MEANWHILE).unlink(missing_ok=True)


def _state(path: Path) -> dict[str, int]:
    return {"bytes": path.stat().st_size, "modified": path.stat().st_mtime_ns}
