"""Masks: which parts of an image count in the loss. White counts, black counts less, gray in between.

A mask is a file of its own beside the image, or the image's own transparency. The names are OneTrainer's
(`cat-masklabel.png`), the `cat_mask.png` of many tools, and kohya's folder of equally named files, here `masks`.
"""
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .buckets import Crop
from .colors import opacity
from .image_files import open_image

MASK_FOLDER = "masks"
CERTAIN_SUFFIX, POSSIBLE_SUFFIX = "-masklabel", "_mask"
"""A file with the first is always a mask; with the second only beside an image without it: `gas_mask.png` may be one."""
SHAPE_TOLERANCE = 0.02
"""How much the proportions of a mask may differ from its image's."""


def pair_masks(files: Iterable[Path], others: Iterable[Path] = ()) -> tuple[list[Path], dict[str, Path]]:
    """Sort the image files of a folder, in the order of their names, into images and {stem of an image: its mask}.
    `others` are the files of the folder `masks`; a mask beside the image goes before them."""
    files, images, masks = list(files), [], {}
    stems = {file.stem for file in files}
    for file in files:
        stem = masked_stem(file, stems)
        if stem is None:
            images.append(file)
        else:
            masks.setdefault(stem, file)
    for file in others:
        masks.setdefault(file.stem, file)
    return images, masks


def masked_stem(file: Path, stems: Collection[str]) -> str | None:
    """The stem of the image that a file is the mask of, by its name; None for an image."""
    if file.stem.endswith(CERTAIN_SUFFIX):
        return file.stem.removesuffix(CERTAIN_SUFFIX)
    bare = file.stem.removesuffix(POSSIBLE_SUFFIX)
    return bare if bare != file.stem and bare in stems else None


def fits(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same proportions."""
    return abs(mask[0] * image[1] / (mask[1] * image[0]) - 1) <= SHAPE_TOLERANCE


def read_mask(path: Path) -> Image.Image:
    """A mask file as 8-bit gray; transparent parts are black. Raises UserError that names a file it cannot read."""
    image = open_image(path)
    if not image.has_transparency_data:
        return image.convert("L")
    canvas = Image.new("RGBA", image.size, (0, 0, 0, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("L")


def read_transparency(path: Path) -> Image.Image:
    """What is opaque in an image, as 8-bit gray: white where nothing shows through."""
    image = open_image(path)
    return opacity(image) or Image.new("L", image.size, 255)


def latent_mask(mask: Image.Image, crop: Crop, downscale: int) -> torch.Tensor:
    """The mask on the image's way into its bucket, averaged over the area of each latent: float32 in 0…1
    [1, height / downscale, width / downscale]."""
    left, top, (width, height) = crop.left, crop.top, crop.bucket
    cut = mask.resize(crop.resized, Image.Resampling.BOX).crop((left, top, left + width, top + height))
    cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrored else cut
    values = torch.from_numpy(np.array(cut, dtype=np.float32) / 255)[None, None]
    return F.interpolate(values, (height // downscale, width // downscale), mode="area")[0]
