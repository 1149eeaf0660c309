"""Writing files so that they appear whole or not at all, and never over one that is already there."""
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

LONGEST_JSON = 200_000_000
"""Bytes; the spec of a run on a million images has fewer."""
UNFINISHED = ".part-"
"""Begins the names of files that are being written."""
_mark = ""


def mark_unfinished(mark: str):
    """From now on the names of this process's unfinished files begin with UNFINISHED and `mark`."""
    global _mark
    _mark = mark


def remove_unfinished(paths: Iterable[Path]):
    """Remove what a killed process left, files and folders. A file that somebody holds open (Windows) stays."""
    for path in paths:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def temporary_beside(path: Path):
    """A new empty file in the same folder, removed if it is still there afterwards. A full disk becomes a sentence.

    It is as readable for others as any new file of this process, unlike those of `tempfile`, which are private.
    """
    temporary = path.with_name(f"{UNFINISHED}{_mark}{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"The disk is full: {path.name} could not be written. Make room and queue again; the run "
                            "goes on from its last checkpoint.") from problem
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None):
    """Write or replace a safetensors file of contiguous tensors on the CPU."""
    from safetensors.torch import save_file

    with temporary_beside(path) as temporary:
        mode = temporary.stat().st_mode
        save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata))
        temporary.chmod(mode)  # the library puts a private file of its own in its place
        os.replace(temporary, path)


def write_json(path: Path, content: Any):
    """Write or replace a small JSON file."""
    with temporary_beside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)


def read_json(path: Path, longest: int = LONGEST_JSON) -> Any | None:
    """The content of a JSON file; None when it is not there, damaged, or longer than so many bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(longest + 1)
        return json.loads(data.decode("utf-8")) if len(data) <= longest else None
    except (OSError, ValueError, RecursionError):
        return None


def place_copy(source: Path, folder: Path, stem: str, avoid: Sequence[Path] = (), link: bool = False) -> Path:
    """Copy a file into a folder as `stem` + its suffix, or `stem-2`, `stem-3`, … where that name is taken, be it in
    this folder or in one of `avoid`.

    A file with the same name and content is not copied again, wherever it is. `link` saves the copy where the disk can:
    both names are then the same file. Returns where the content lies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 10_000):
        target = folder / f"{stem if number == 1 else f'{stem}-{number}'}{source.suffix}"
        elsewhere = [other / target.name for other in avoid if (other / target.name).exists()]
        if elsewhere:
            if same_content(source, elsewhere[0]):
                return elsewhere[0]
            continue
        if target.exists():
            if same_content(source, target):
                return target
            continue
        if link:
            try:
                os.link(source, target)
                return target
            except OSError:  # another disk, another file system, or the name was taken meanwhile
                if target.exists():
                    continue
        with temporary_beside(target) as temporary:
            shutil.copyfile(source, temporary)
            try:
                os.link(temporary, target)  # fails if another process took the name meanwhile
            except FileExistsError:
                continue
            except OSError:  # file systems without hard links
                os.replace(temporary, target)
        return target
    raise UserError(f"The folder {folder.name!r} has no free name for {stem!r}. Choose another run name.")


def same_content(one: Path, other: Path, block: int = 1 << 20) -> bool:
    if one.samefile(other):
        return True
    if one.stat().st_size != other.stat().st_size:
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        while piece := first.read(block):
            if piece != second.read(block):
                return False
    return True


def ensure_space(folder: Path, needed: int):
    """Raise UserError when the disk of `folder` has less than `needed` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"The run needs about {needed / 1e9:.1f} GB on the disk of its run folder, but only "
                        f"{free / 1e9:.1f} GB are free. Make room, or lower the number of checkpoints kept.")
