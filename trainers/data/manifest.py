"""From a folder of images to a light manifest: what is there, what is skipped, and why."""
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..spec import DatasetImage, DatasetSpec
from ..words import clause, listed, printable, shown
from .captions.caption_search import CaptionSearch
from .captions.trigger_word import with_trigger
from .images.image_files import WHITE, Examined, examine_image
from .images.masks import fits
from .sources import IMAGE_SUFFIXES, Folder, walk

__all__ = ["IMAGE_SUFFIXES", "Subfolders", "examined", "scan_folder"]

Subfolders = Literal["ignore", "read", "read, repeats by name"]
MOST_SKIPPED = 20
"""Skipped files that are named one by one."""
MOST_THREADS = 8
"""Each holds an image; more would take memory rather than save time."""
MOST_REPEATS = 10_000
"""Of one image, as its spec takes them."""


Found = tuple[str, Examined] | UserError
"""(SHA-256, what it is) of an image, or why it cannot be read."""


@lru_cache(maxsize=100_000)
def _examined(path: str, size: int, modified: int) -> tuple[str, Examined]:
    """(SHA-256, what it is) of an image that decodes. Size and time are arguments so that a changed file is read again and
    an unchanged one is not."""
    found = examine_image(Path(path))  # first: what is no image is not read to its end
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest(), found


def examined(path: Path) -> tuple[str, Examined]:
    """(SHA-256 of the file, what the image is). Raises UserError for a file that cannot be read."""
    try:
        status = path.stat()
        return _examined(str(path), status.st_size, status.st_mtime_ns)
    except OSError as problem:
        raise UserError(f"{path.name}: the image cannot be read ({problem.strerror})") from None


def _examine_all(paths: Sequence[Path], on_progress: Callable[[int, int], None]) -> dict[Path, Found]:
    def examine(path: Path) -> Found:
        try:
            return examined(path)
        except UserError as problem:
            return problem

    found = {}
    pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what becomes a note here
            for done, (path, result) in enumerate(zip(paths, pool.map(examine, paths)), start=1):
                on_progress(done, len(paths))
                found[path] = result
    finally:
        pool.shutdown(cancel_futures=True)  # when the person cancels, the rest is not waited for
    return found


def _checked_mask(mask: Path, found: Found, image: str, size: tuple[int, int]) -> str:
    """The SHA-256 of a mask. Raises UserError, as a note, when it cannot be used for its image."""
    if isinstance(found, UserError):
        raise UserError(f"skipped the mask {_without_line_breaks(found, mask)}")
    digest, look = found
    if not fits(look.size, size):
        shape, wanted = ("×".join(map(str, each)) for each in (look.size, size))
        raise UserError(f"skipped the mask {shown(mask.name)}: it has {shape} pixels and {image} has {wanted}, which is "
                        "another shape")
    return digest


def _mask_notes(folders: Sequence[Folder], images: Sequence[DatasetImage]) -> list[str]:
    notes, files = [], [image for image in images if image.mask not in ("", image.path)]
    if files:
        notes.append(clause(len(files), "image", "have a mask file, which counts with masked switched on in Training "
                            "Objective", len(images)))
    known = {str(Path(image.path).with_suffix("")) for image in images}
    lost = [mask for folder in folders for stem, mask in sorted(folder.masks.items())
            if str(folder.path / stem) not in known]
    if lost:
        notes.append(clause(len(lost), "mask", f"belong to no image, for example {shown(lost[0].name)}"))
    return notes


def _remark_notes(found: Sequence[tuple[str, Examined]]) -> list[str]:
    """What is to be known of some images, once for all of them."""
    names = {}
    for name, each in found:
        for remark in each.remarks:
            names.setdefault(remark, []).append(name)
    return [clause(len(some), "image", f"{remark}: {listed(some)}", len(found)) for remark, some in names.items()]


def scan_folder(
    folder: str,
    name: str,
    trigger: str = "",
    repeats: int = 1,
    default_caption: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    subfolders: Subfolders = "ignore",
    background: str = WHITE,
    others: Sequence[Path] = (),
) -> DatasetSpec:
    """The images of a folder with their captions (see `caption_search`) and their masks: files beside them or in the
    folder `masks` (see `masks`), or else their own transparency. Images in `subfolders` are named "sub/cat.png", and the
    folders may be kohya's `N_name`, with N times the repeats. `background` (#rrggbb) shows through transparent parts.
    `others` are folders that links to folders may lead into, besides the dataset's own.

    Every image is decoded once: one that is damaged is skipped and named in `notes`. Images without a caption get
    `default_caption`. Raises UserError when nothing usable is left.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"The dataset folder {name!r} is not there. Refresh the node list and choose a folder again.")
    numbered, skipped, unreadable = subfolders == "read, repeats by name", [], []
    folders = list(walk(root, subfolders != "ignore", numbered, skipped, others))
    count = sum(len(each.images) for each in folders)
    if not count:
        hint = "; if they lie in folders inside it, set subfolders to read" if subfolders == "ignore" else ""
        raise UserError("\n".join([
            f"The dataset folder {name!r} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}). Put some there, each "
            f"with a .txt caption beside it{hint}.", *(f"{note[0].upper()}{note[1:]}." for note in skipped[:3])]))
    paths = [path for each in folders for path in (*each.masks.values(), *each.images)]
    found = _examine_all(list(dict.fromkeys(paths)), on_progress)
    images, looks, notes, captions = [], [], [], CaptionSearch(default_caption)
    for each in folders:
        captions.enter(each)
        for file in each.images:
            label = each.name + file.name
            seen = found[file]
            if isinstance(seen, UserError):
                unreadable.append(f"{shown(each.name)}{_without_line_breaks(seen, file)}")
                skipped.append(f"skipped {unreadable[-1]}")
                continue
            digest, look = seen
            looks.append((label, look))
            mask, mask_digest = (str(file), digest) if look.transparent else ("", "")
            if file.stem in each.masks:
                path = each.masks[file.stem]
                try:
                    mask_digest = _checked_mask(path, found[path], shown(label), look.size)
                    mask = str(path)
                except UserError as problem:
                    skipped.append(str(problem))
            images.append(DatasetImage(
                path=str(file), name=printable(label), caption=with_trigger(captions.of(each, file), trigger),
                size=look.size, digest=digest, repeats=min(MOST_REPEATS, repeats * each.repeats), mask=mask,
                mask_digest=mask_digest, background=background if look.transparent else WHITE,
            ))
        if repeats * each.repeats > MOST_REPEATS:
            notes.append(f"the images in {shown(each.name)} come {MOST_REPEATS} times, which is the most, not "
                         f"{repeats * each.repeats} times")
    if not images:
        which = f"None of the {count} images" if count > 1 else "The only image"
        more = [f"and {count - 3} more"][:count > 3]
        raise UserError(f"{which} in {name!r} can{'' if count > 1 else 'not'} be read: "
                        f"{'; '.join([*unreadable[:3], *more])}.")
    numbered = numbered or any(each.numbered for each in folders)
    if numbered and (plain := sum(len(each.images) for each in folders if not each.numbered)):
        notes.append(clause(plain, "image", f"lie in no folder with a name like 10_cat, which means {repeats} times"))
    if len(skipped) > MOST_SKIPPED:
        skipped[MOST_SKIPPED:] = [clause(len(skipped) - MOST_SKIPPED, "more file", "are skipped for such reasons")]
    notes = [*skipped, *notes, *captions.notes(len(images), trigger), *_remark_notes(looks),
             *_mask_notes(folders, images)]
    return DatasetSpec(name=printable(name), images=tuple(images), trigger=trigger, notes=tuple(notes))


def _without_line_breaks(problem: UserError, file: Path) -> str:
    return str(problem).replace(file.name, shown(file.name))
