"""From a folder of pictures to a light manifest: what is there, what is skipped, and why."""
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Callable, Mapping, Sequence

from ..errors import UserError
from ..spec import DatasetSpec, Picture
from .captions import read_caption, with_trigger
from .masks import MASK_FOLDER, fits, pair_masks
from .pictures import examine_picture

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


@lru_cache(maxsize=100_000)
def _examined(path: str, size: int, modified: int) -> tuple[str, tuple[int, int], bool]:
    """(SHA-256, upright size, whether parts are transparent) of a picture that decodes. Size and time are arguments so
    that a changed file is read again and an unchanged one is not."""
    examined = examine_picture(Path(path))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest(), examined.size, examined.transparent


def _examine(path: Path):
    try:
        stat = path.stat()
        return _examined(str(path), stat.st_size, stat.st_mtime_ns)
    except UserError as problem:
        return problem


def _picture_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file())


def _mask_problem(mask: Path, examined, picture: Path, size: tuple[int, int]) -> str | None:
    """Why a mask cannot be used for its picture, as a note."""
    if isinstance(examined, UserError):
        return f"skipped the mask {examined}"
    if not fits(examined[1], size):
        shape, wanted = ("×".join(map(str, each)) for each in (examined[1], size))
        return (f"skipped the mask {mask.name}: it has {shape} pixels and {picture.name} has {wanted}, which is another "
                "shape")
    return None


def _mask_notes(masks: Mapping[str, Path], pictures: Sequence[Picture]) -> list[str]:
    notes, files = [], [picture for picture in pictures if picture.mask not in ("", picture.path)]
    if files:
        notes.append(f"{len(files)} of {len(pictures)} pictures have a mask file, which counts with masked switched on in "
                     "Training Objective")
    lost = sorted(set(masks) - {Path(picture.path).stem for picture in pictures})
    if lost:
        notes.append(f"{len(lost)} masks belong to no picture, for example {masks[lost[0]].name}")
    return notes


def scan_folder(
    folder: str,
    name: str,
    trigger: str = "",
    repeats: int = 1,
    default_caption: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DatasetSpec:
    """The pictures of a folder (not of its sub-folders) with their `.txt` or `.caption` captions, and their masks: files
    beside them or in the folder `masks` (see `masks`), or else their own transparency.

    Every picture is decoded once: one that is damaged is skipped and named in `notes`. Pictures without a caption get
    `default_caption`. Raises UserError when nothing usable is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"The dataset folder {name!r} is not there. Refresh the node list and choose a folder again.")
    files, masks = pair_masks(_picture_files(root), _picture_files(root / MASK_FOLDER))
    if not files:
        raise UserError(f"The dataset folder {name!r} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))}). "
                        "Put some there, each with a .txt caption beside it.")
    paths = [*masks.values(), *files]
    with ThreadPoolExecutor() as pool:
        examined = {}
        for done, (path, result) in enumerate(zip(paths, pool.map(_examine, paths)), start=1):
            on_progress(done, len(paths))
            examined[path] = result
    pictures, notes, captionless = [], [], 0
    for file in files:
        if isinstance(examined[file], UserError):
            notes.append(f"skipped {examined[file]}")
            continue
        digest, size, transparent = examined[file]
        mask, mask_digest = (str(file), digest) if transparent else ("", "")
        if file.stem in masks:
            path = masks[file.stem]
            problem = _mask_problem(path, examined[path], file, size)
            if problem:
                notes.append(problem)
            else:
                mask, mask_digest = str(path), examined[path][0]
        caption = read_caption(file)
        captionless += caption is None
        pictures.append(Picture(
            path=str(file), name=file.name, caption=with_trigger(caption or default_caption, trigger), size=size,
            digest=digest, repeats=repeats, mask=mask, mask_digest=mask_digest,
        ))
    if not pictures:
        raise UserError(f"None of the {len(files)} pictures in {name!r} can be read: {'; '.join(notes[:3])}.")
    if captionless:
        instead = f"caption {default_caption!r}" if default_caption else "trigger word alone" if trigger else "empty caption"
        notes.append(f"{captionless} of {len(pictures)} pictures have no caption file and get the {instead}")
    notes += _mask_notes(masks, pictures)
    return DatasetSpec(name=name, pictures=tuple(pictures), trigger=trigger, notes=tuple(notes))
