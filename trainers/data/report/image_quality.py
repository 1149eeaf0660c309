"""What can be wrong with the pixels of an image: blurred, over-compressed, small, in an unusual color mode.

An image is measured once and judged afterwards, because some judgements compare it with the others of its dataset.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from ...errors import UserError
from ..images.image_files import read_image
from .near_duplicates import fingerprint

SHARPNESS_SIDE = 512
"""Longer sides are reduced to this many pixels first, so that the sharpness of all sizes can be compared."""
BLURRED = 0.01
"""Sharpness below which an image is blurred, whatever the others are. A Gaussian blur of 2 pixels (of 512) brings ordinary
images there."""
SOFT, SOFTER_THAN_OTHERS = 0.04, 0.15
"""An image below SOFT is blurred too when its sharpness is less than this fraction of the dataset's median."""
PLAIN = 2.0
"""Standard deviation of brightness, of 255, below which there is nothing in an image that could be sharp."""
COMPRESSED_QUALITY = 50
"""JPEG quality of the usual scale (IJG, as in Pillow) below which blocks and halos show."""
BLOCKY = 1.6
"""How much larger the steps between 8 × 8 blocks are than those inside, above which it was a strong JPEG."""
ENLARGED = 1.1
"""Enlargement on the way into the bucket above which an image is tiny for the resolution."""
CROPPED = 0.85
"""Fraction of an image's area below which the bucket keeps too little."""
COLORLESS = 16.0
"""Difference between the color channels, of 255, which hardly any pixel of a gray image reaches; more than compression
makes of gray."""

# The luminance table of the JPEG standard (ITU-T T.81, table K.1) in order of size; encoders scale it by their quality.
STANDARD_TABLE = np.array([
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61, 60,
    57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112,
    100, 120, 92, 101, 103, 99])


@dataclass(frozen=True)
class Measured:
    """What is known of an image file. `sharpness` and `jpeg_quality` are None where there is nothing to measure."""

    mode: str
    """Pillow's name of the color mode, with ";16" behind it where a channel has 16 bits."""
    transparent: bool
    frames: int
    color: float
    """Difference between the largest and the smallest channel, 0…255, that one pixel in a hundred exceeds."""
    sharpness: float | None
    jpeg_quality: int | None
    blockiness: float
    fingerprint: bytes


def measure(path: str) -> Measured | None:
    """Measure an image file, or take what was measured while its size and time were the same. None when it cannot be read
    any more."""
    try:
        stat = Path(path).stat()
        return _measured(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, UserError):
        return None


@lru_cache(maxsize=20_000)
def _measured(path: str, size: int, modified: int) -> Measured:
    with Image.open(path) as file:
        deep = ";16" in str(file.tile) or file.mode.startswith(("I", "F"))
        mode = file.mode.split(";")[0] + (";16" if deep else "")
        frames, transparent = getattr(file, "n_frames", 1), file.has_transparency_data
        tables = getattr(file, "quantization", None) if file.format in ("JPEG", "MPO") else None
    image = read_image(Path(path))
    blocks = blockiness(image)
    image.thumbnail((SHARPNESS_SIDE, SHARPNESS_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    pixels = np.asarray(image, np.float32)
    return Measured(mode, transparent, frames, float(np.percentile(pixels.max(axis=2) - pixels.min(axis=2), 99)),
                    sharpness(np.asarray(image.convert("L"), np.float32)), jpeg_quality(tables) if tables else None,
                    blocks, fingerprint(image))


def sharpness(gray: np.ndarray) -> float | None:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy") as a fraction of
    the variance of brightness, for float32 [height, width] in 0…255. None for a plain area.

    The ratio does not change with contrast, nor with the size of an empty background around the subject.
    """
    if min(gray.shape) < 3 or gray.std() < PLAIN:
        return None
    laplacian = (gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1])
    return float(laplacian.var() / gray.var())


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int:
    """The quality, 1…100, whose scaled standard table is nearest to a file's luminance table: the inverse of libjpeg's
    scaling (jcparam.c). Encoders with tables of their own get the quality that is about as strong."""
    table = np.sort(np.asarray(tables[min(tables)], np.float64))
    whole = table < 255  # larger ones were cut there
    scale = 100 * float(table[whole].sum()) / float(np.sort(STANDARD_TABLE)[whole].sum()) if whole.any() else 5000
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return int(min(100, max(1, round(quality))))


def blockiness(image: Image.Image, side: int = 1024) -> float:
    """Mean brightness step across the borders of 8 × 8 blocks over that between all other neighbors, in the middle of an
    RGB image at its own size: 1 where there are no blocks. Blocks survive in files that were a JPEG once."""
    left, top = (max(0, (length - side) // 2 // 8 * 8) for length in image.size)
    box = (left, top, min(image.width, left + side), min(image.height, top + side))
    gray = np.asarray(image.crop(box).convert("L"), np.float32)
    ratios = []
    for steps in (np.abs(np.diff(gray, axis=1)).mean(axis=0), np.abs(np.diff(gray, axis=0)).mean(axis=1)):
        if len(steps) < 32:
            return 1.0
        phases = [float(steps[phase::8].mean()) for phase in range(8)]
        inside = sum(phases[:7]) / 7
        # Where nothing happens inside blocks it is a drawing in large pixels; where another line of the grid is as strong,
        # it is the image's own pattern.
        ratios.append(phases[7] / inside if inside > 0.2 and phases[7] > 1.2 * max(phases[:7]) else 1.0)
    return min(ratios)


# ---- judgements ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Finding:
    """Something to look at. `images` are places in the dataset, `mark` is the word on the contact sheet, and `text` is a
    sentence that says what it is and what to do."""

    kind: str
    mark: str
    text: str
    images: tuple[int, ...] = ()


def blurred(measured: Sequence[Measured | None]) -> tuple[int, ...]:
    """Places of images that are less sharp than BLURRED, or that are soft and far less sharp than most others."""
    known = [each.sharpness for each in measured if each and each.sharpness is not None]
    usual = median(known) if known else 0.0
    return tuple(place for place, each in enumerate(measured) if each and each.sharpness is not None and (
        each.sharpness < BLURRED or each.sharpness < min(SOFT, SOFTER_THAN_OTHERS * usual)))


def compressed(each: Measured) -> bool:
    return each.jpeg_quality < COMPRESSED_QUALITY if each.jpeg_quality is not None else each.blockiness > BLOCKY


def odd_mode(each: Measured) -> str | None:
    """What is unusual about an image's colors, in a word that stands on the contact sheet."""
    if each.mode.endswith(";16"):
        return "16 bit"
    if each.mode in ("CMYK", "LAB"):
        return each.mode
    if each.frames > 1:
        return "animated"
    if each.transparent:
        return "transparent"
    if each.mode in ("P", "PA"):
        return "palette"
    return "gray" if each.mode in ("1", "L", "LA") or each.color < COLORLESS else None
