"""From a folder of pictures to a light manifest: what is there, what is skipped, and why."""
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Callable

from ..errors import UserError
from ..spec import DatasetSpec, Picture
from .captions import read_caption, with_trigger
from .pictures import read_size

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@lru_cache(maxsize=100_000)
def _examined(path: str, size: int, modified: int) -> tuple[str, tuple[int, int]]:
    """(SHA-256, upright size) of a picture that decodes. Size and time are arguments so that a changed file is read
    again and an unchanged one is not."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest(), read_size(Path(path))


def _examine(path: Path):
    try:
        stat = path.stat()
        return _examined(str(path), stat.st_size, stat.st_mtime_ns)
    except UserError as problem:
        return problem


def scan_folder(
    folder: str,
    name: str,
    trigger: str = "",
    repeats: int = 1,
    default_caption: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetSpec:
    """The pictures of a folder (not of its sub-folders) with their `.txt` or `.caption` captions.

    Every picture is decoded once: one that is damaged is skipped and named in `notes`. Pictures without a caption get
    `default_caption`. Raises UserError when nothing usable is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"The dataset folder {name!r} is not there. Refresh the node list and choose a folder again.")
    files = sorted(file for file in root.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())
    if not files:
        raise UserError(f"The dataset folder {name!r} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}). "
                        "Put some there, each with a .txt caption beside it.")
    pictures, notes, captionless = [], [], 0
    with ThreadPoolExecutor() as pool:
        for done, (file, result) in enumerate(zip(files, pool.map(_examine, files)), start=1):
            on_progress(done, len(files))
            if isinstance(result, UserError):
                notes.append(f"skipped {result}")
                continue
            digest, size = result
            caption = read_caption(file)
            captionless += caption is None
            pictures.append(Picture(
                path=str(file), name=file.name, caption=with_trigger(caption or default_caption, trigger),
                size=size, digest=digest, repeats=repeats,
            ))
    if not pictures:
        raise UserError(f"None of the {len(files)} pictures in {name!r} can be read: {'; '.join(notes[:3])}.")
    if captionless:
        instead = f"caption {default_caption!r}" if default_caption else "trigger word alone" if trigger else "empty caption"
        notes.append(f"{captionless} of {len(pictures)} pictures have no caption file and get the {instead}")
    return DatasetSpec(name=name, pictures=tuple(pictures), trigger=trigger, notes=tuple(notes))
