"""Images that came as tensors, kept as PNG files named by their content, so that a dataset of them is as light as any."""
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..files import ensure_space, temporary_beside
from ..spec import DatasetImage, DatasetSpec
from ..words import clause, counted, one_line
from .captions.trigger_word import with_trigger
from .images.masks import fits
from .manifest import examined

FOLDER = "images"
"""Inside the caches' folder."""


def captions_of(text: str, count: int) -> list[str]:
    """One caption for each of `count` images: a single line is for all of them. Raises UserError for other numbers."""
    lines = [line.strip() for line in text.strip("\n").splitlines()]
    for chosen in (lines, [line for line in lines if line]):
        if len(chosen) == count:
            return [one_line(line) for line in chosen]
    if len(chosen) > 1:
        raise UserError(f"captions has {len(chosen)} lines for {counted(count, 'image')}. Write one line for all of them, "
                        "or as many lines as there are images.")
    return [one_line("".join(chosen))] * count


def store(values: np.ndarray, folder: Path) -> Path:
    """Write 8-bit pixels [height, width] or [height, width, channels] to a PNG file, unless it is there already."""
    content = hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes()).hexdigest()
    path = folder / content[:2] / f"{content[:40]}.png"
    if path.exists():
        try:
            examined(path)
            return path
        except UserError:  # damaged, so it is written anew
            pass
    path.parent.mkdir(parents=True, exist_ok=True)
    ensure_space(path.parent, values.size)
    with temporary_beside(path) as temporary:
        Image.fromarray(values).save(temporary, compress_level=4)
        os.replace(temporary, path)
    return path


def eight_bit(tensor: Tensor) -> np.ndarray:
    """Values in 0…1 → 0…255, to the nearest; what is not a number is black."""
    return (tensor.float().nan_to_num(0).clamp(0, 1) * 255).round().byte().cpu().numpy()


def store_dataset(images: Sequence[Tensor], captions: Sequence[str], masks: Sequence[Tensor], caches: Path, name: str,
                  trigger: str = "", repeats: int = 1) -> DatasetSpec:
    """A dataset of images [height, width, 3 or 4] in 0…1, one caption each; `masks` [height, width], 1 where an image
    counts, are one each, one for all, or none. Raises UserError where masks do not fit."""
    if masks and len(masks) not in (1, len(images)):
        raise UserError(f"There are {len(masks)} masks for {counted(len(images), 'image')}. Connect one mask for all of "
                        "them, or as many as there are images.")
    entries = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        if image.shape[-1] not in (1, 3, 4):
            raise UserError(f"Image {number} has {image.shape[-1]} channels. Connect images with 3 channels, or 4 for "
                            "transparency.")
        path = store(eight_bit(image.squeeze(-1)), caches / FOLDER)
        digest, look = examined(path)
        mask, mask_digest = (path, digest) if look.transparent else ("", "")
        if masks:
            chosen = masks[(number - 1) % len(masks)]
            if not fits((chosen.shape[1], chosen.shape[0]), look.size):
                raise UserError(f"The mask of image {number} has {chosen.shape[1]}×{chosen.shape[0]} pixels and the "
                                f"image {look.size[0]}×{look.size[1]}, which is another shape. Connect a mask of the "
                                "image's shape.")
            mask = store(eight_bit(chosen), caches / FOLDER)
            mask_digest, _ = examined(mask)
        entries.append(DatasetImage(
            path=str(path), name=f"{name} {number:0{len(str(len(images)))}}.png", caption=with_trigger(caption, trigger),
            size=look.size, digest=digest, repeats=repeats, mask=str(mask), mask_digest=mask_digest))
    bare = sum(not caption for caption in captions)
    instead = "trigger word alone" if trigger else "empty caption"
    notes = (clause(bare, "image", f"have no caption; the {instead} is taken", len(images)),) if bare else ()
    return DatasetSpec(name=name, images=tuple(entries), trigger=trigger, notes=notes)
