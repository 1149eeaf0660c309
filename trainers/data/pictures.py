"""Picture files → upright RGB → the pixels of a bucket."""
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import UserError
from .buckets import Crop

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels."""


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


def read_picture(path: Path) -> Image.Image:
    """The first frame, upright, as RGB on white. Raises UserError that names a file it cannot read."""
    picture = open_picture(path)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, (*BACKGROUND, 255))
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
