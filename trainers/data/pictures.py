"""Picture files → upright RGB → the pixels of a bucket."""
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import UserError
from ..spec import Picture
from .buckets import Crop

WHITE = "#ffffff"
READING = 2
"""Changes whenever the same file would be read as other pixels: what was cached before is then prepared anew."""


def pixel_key(picture: Picture) -> tuple[int | str, ...]:
    """What determines a picture's pixels besides its crop, as part of a cache's key. `background` tells apart only pictures
    with transparent parts: a manifest leaves it at its default for the others."""
    return READING, picture.digest, picture.background


def open_picture(path: Path) -> Image.Image:
    """The first frame, upright by its EXIF tag, at most 8 bits deep. Raises UserError that names a file it cannot read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file)
                picture.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, MemoryError) as problem:
        raise UserError(f"{path.name}: the picture cannot be read ({problem or type(problem).__name__})") from None
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray((np.asarray(picture, dtype=np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    return picture


def read_picture(path: Path, background: str = WHITE, wanted: tuple[int, int] | None = None) -> Image.Image:
    """The first frame, upright, as RGB on `background` (#rrggbb). Raises UserError that names a file it cannot read.

    `wanted` is the (width, height) that the whole picture will be resized to: one that is much larger may come smaller
    than it is in the file, which is faster.
    """
    picture = open_picture(path)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, background)
        canvas.alpha_composite(picture)
        picture = canvas
    return picture.convert("RGB")


def examine_picture(path: Path) -> tuple[tuple[int, int], bool]:
    """((width, height) in pixels, whether parts of it are transparent) of a picture that decodes completely."""
    picture = open_picture(path)
    transparent = picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema()[0] < 255
    return picture.size, transparent


def crop_pixels(picture: Image.Image, crop: Crop) -> torch.Tensor:
    """Resize with Lanczos, cut out the bucket, scale to -1…1: float32 [3, height, width]."""
    resized = picture.resize(crop.resized, Image.Resampling.LANCZOS)
    left, top = crop.left, crop.top
    cut = resized.crop((left, top, left + crop.bucket[0], top + crop.bucket[1]))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 127.5 - 1
