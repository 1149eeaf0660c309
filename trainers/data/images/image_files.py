"""Image files → upright RGB → the pixels of a bucket."""
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError, features

from ...errors import UserError
from ...spec import DatasetImage
from .buckets import Crop
from .colors import DAMAGED_PROFILE, UNCERTAIN_WHITE, WHITES, eight_bits, opacity, profile_fits, to_srgb

WHITE = "#ffffff"
READING = 3
"""Changes whenever the same file would be read as other pixels: what was cached before is then prepared anew."""
MOST_PIXELS = 178_956_970
"""Pillow's limit against files that are made to fill the memory; ours too where another program has lifted it."""
LARGE = 25_000_000
"""Pixels from which on images are decoded one at a time: a hundred million take 300 to 400 MB each."""
ROOM = 2
"""An image that comes smaller than it is in the file is still this many times as large as what is made of it."""
FIRST_ONLY = "have several frames or pages, of which only the first is used"
SEVERAL_FRAMES = frozenset({"AVIF", "GIF", "PNG", "TIFF", "WEBP"})
"""Formats whose further frames people would miss. Those of camera files (MPO) are the same view again."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation (Exif 2.32, tag 274) → what turns the image upright; from 5 on, width and height change places."""

_one_large_image = RLock()


def pixel_key(image: DatasetImage) -> tuple[int | str, ...]:
    """What determines an image's pixels besides its crop, as part of a cache's key. `background` tells apart only images
    with transparent parts: a manifest leaves it at its default for the others."""
    return READING, image.digest, image.background


@dataclass(frozen=True)
class Examined:
    """What an image is: (width, height) in pixels, upright; whether parts of it are transparent; and what people should
    know of it, as what is said of several images ("are animated, …")."""

    size: tuple[int, int]
    transparent: bool
    remarks: tuple[str, ...]


def open_image(path: Path) -> Image.Image:
    """The first frame, upright by its EXIF tag, at most 8 bits deep. Raises UserError that names a file it cannot read."""
    with _opened(path) as file:
        return eight_bits(_upright(file))


def read_image(path: Path, background: str = WHITE, wanted: tuple[int, int] | None = None) -> Image.Image:
    """The first frame, upright, in sRGB, on `background` (#rrggbb). Raises UserError that names a file it cannot read.

    `wanted` is the (width, height) that the whole image will be resized to. Where both sides are 2 · `ROOM` times that or
    more, a JPEG is decoded at a half, a quarter or an eighth of its size, in less than half of the time. Against resizing
    all of it, photographs change by less than one step of 255 on average, and by less than half a pixel in place. Other
    files gain no time and are made smaller only if they are `LARGE`, for the memory.
    """
    with _opened(path) as file:
        if wanted:
            _decode_smaller(file, (ROOM * wanted[0], ROOM * wanted[1]))
        image = to_srgb(eight_bits(_upright(file)))
        if image.mode == "RGBA":
            canvas = Image.new("RGBA", image.size, background)
            canvas.alpha_composite(image)
            image = canvas.convert("RGB")
        if wanted and image.width * image.height > LARGE:
            factor = max(1, min(side // (ROOM * goal) for side, goal in zip(image.size, wanted)))
            image = image.resize((image.width // factor, image.height // factor), Image.Resampling.BOX)
        return image


def examine_image(path: Path) -> Examined:
    """What an image is, if it decodes completely. Raises UserError that names a file it cannot read.

    A JPEG is decoded at an eighth, which reads all of the file and nearly needs no memory.
    """
    with _opened(path) as file:
        remarks = [FIRST_ONLY] if file.format in SEVERAL_FRAMES and _has_more_frames(file) else []
        size = _decode_smaller(file, (1, 1))
        image = _upright(file)
        size = size or image.size
        if image.mode in WHITES:
            remarks.append(UNCERTAIN_WHITE)
        image = eight_bits(image)
        if not profile_fits(image):
            remarks.append(DAMAGED_PROFILE)
        alpha = opacity(image)
        return Examined(size, alpha is not None and alpha.getextrema() != (255, 255), tuple(remarks))


def cut_image(image: Image.Image, crop: Crop) -> Image.Image:
    """Resize with Lanczos, cut out the bucket, mirror if the crop says so."""
    # With the gap, blocks are averaged before the filter where an image is far too large: a fifth of the time, and, as
    # Pillow's documentation says of 3.0, hard to tell from the filter alone.
    resized = image.resize(crop.resized, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = crop.left, crop.top
    cut = resized.crop((left, top, left + crop.bucket[0], top + crop.bucket[1]))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrored else cut


def crop_pixels(image: Image.Image, crop: Crop) -> torch.Tensor:
    """The cut image, scaled to -1…1: float32 [3, height, width]."""
    return torch.from_numpy(np.array(cut_image(image, crop))).permute(2, 0, 1).float() / 127.5 - 1


# ---- files ---------------------------------------------------------------------------------------------------------

@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, for as long as it is worked with. All that goes wrong meanwhile becomes a UserError."""
    try:
        with Image.open(path) as file:
            pixels = file.width * file.height
            if pixels > MOST_PIXELS:
                raise Image.DecompressionBombError
            with _one_large_image if pixels > LARGE else nullcontext():
                yield file
    except Exception as problem:  # decoders raise whatever they stumble over, struct.error and KeyError among them
        raise UserError(f"{path.name}: the image cannot be read ({_reason(path, problem)})") from None


def _reason(path: Path, problem: Exception) -> str:
    if isinstance(problem, Image.DecompressionBombError):
        return f"it has more than {MOST_PIXELS // 10**6} million pixels; make it smaller"
    if isinstance(problem, UnidentifiedImageError):
        if path.stat().st_size == 0:
            return "the file is empty"
        if path.suffix.lower() == ".avif" and not features.check("avif"):
            return "AVIF needs Pillow 11.3 or newer; update it, or save the image as PNG"
        return "its content is of no image format that Pillow knows; save it as PNG or JPEG"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return str(problem) or type(problem).__name__


def _orientation(file: Image.Image) -> int:
    try:
        value = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data is no reason to refuse an image
        return 1
    return value if value in UPRIGHT else 1


def _upright(file: Image.Image) -> Image.Image:
    """Decode a file."""
    file.load()
    orientation = _orientation(file)  # only now: Pillow turns TIFF images itself, and then there is nothing left to do
    return file.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else file


def _decode_smaller(file: Image.Image, least: tuple[int, int]) -> tuple[int, int] | None:
    """Let a JPEG be decoded at a half, a quarter or an eighth, but at least at the (width, height) `least`, upright. Returns
    the image's whole size, upright; None where the format has no such decoder."""
    if file.format not in ("JPEG", "MPO"):
        return None
    width, height = file.size
    if _orientation(file) < 5:
        file.draft(None, least)
        return width, height
    file.draft(None, (least[1], least[0]))
    return height, width


def _has_more_frames(file: Image.Image) -> bool:
    try:
        return getattr(file, "is_animated", False)
    except Exception:  # only later frames are damaged
        return True
