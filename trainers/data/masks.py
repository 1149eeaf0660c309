"""Masks: which parts of a picture count in the loss. White counts, black counts less, grey in between.

A mask is a file of its own beside the picture, or the picture's own transparency. The names are OneTrainer's
(`cat-masklabel.png`), the `cat_mask.png` of many tools, and kohya's folder of equally named files, here `masks`.
"""
from pathlib import Path
from typing import Collection, Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import UserError
from ..files import ensure_space
from ..spec import Picture
from .buckets import Crop
from .caches import TensorCache
from .colours import opacity
from .pictures import open_picture

MASK_FOLDER = "masks"
CERTAIN_SUFFIX, POSSIBLE_SUFFIX = "-masklabel", "_mask"
"""A file with the first is always a mask; with the second only beside a picture without it: `gas_mask.png` may be one."""
SHAPE_TOLERANCE = 0.02
"""How much the proportions of a mask may differ from its picture's."""


def pair_masks(files: Iterable[Path], others: Iterable[Path] = ()) -> tuple[list[Path], dict[str, Path]]:
    """Sort the picture files of a folder, in the order of their names, into pictures and {stem of a picture: its mask}.
    `others` are the files of the folder `masks`; a mask beside the picture goes before them."""
    files, pictures, masks = list(files), [], {}
    stems = {file.stem for file in files}
    for file in files:
        stem = masked_stem(file, stems)
        if stem is None:
            pictures.append(file)
        else:
            masks.setdefault(stem, file)
    for file in others:
        masks.setdefault(file.stem, file)
    return pictures, masks


def masked_stem(file: Path, stems: Collection[str]) -> str | None:
    """The stem of the picture that a file is the mask of, by its name; None for a picture."""
    if file.stem.endswith(CERTAIN_SUFFIX):
        return file.stem.removesuffix(CERTAIN_SUFFIX)
    bare = file.stem.removesuffix(POSSIBLE_SUFFIX)
    return bare if bare != file.stem and bare in stems else None


def fits(mask: tuple[int, int], picture: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same proportions."""
    return abs(mask[0] * picture[1] / (mask[1] * picture[0]) - 1) <= SHAPE_TOLERANCE


def read_mask(path: Path) -> Image.Image:
    """A mask file as 8-bit grey; transparent parts are black. Raises UserError that names a file it cannot read."""
    picture = open_picture(path)
    if not picture.has_transparency_data:
        return picture.convert("L")
    canvas = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("L")


def read_transparency(path: Path) -> Image.Image:
    """What is opaque in a picture, as 8-bit grey: white where nothing shows through."""
    picture = open_picture(path)
    return opacity(picture) or Image.new("L", picture.size, 255)


def latent_mask(mask: Image.Image, crop: Crop, downscale: int) -> torch.Tensor:
    """The mask on the picture's way into its bucket, averaged over the area of each latent: float32 in 0…1
    [1, height / downscale, width / downscale]."""
    left, top, (width, height) = crop.left, crop.top, crop.bucket
    cut = mask.resize(crop.resized, Image.Resampling.BOX).crop((left, top, left + width, top + height))
    values = torch.from_numpy(np.array(cut, dtype=np.float32) / 255)[None, None]
    return F.interpolate(values, (height // downscale, width // downscale), mode="area")[0]


class MaskCache:
    """Masks at the size of the latents, kept by the mask's content and the crop."""

    def __init__(self, caches: str, downscale: int):
        self.cache, self.downscale = TensorCache(Path(caches) / "masks"), downscale

    def key(self, picture: Picture, crop: Crop) -> str:
        own = picture.mask == picture.path
        return TensorCache.key(picture.mask_digest, own, crop.resized, crop.left, crop.top, crop.bucket, self.downscale)

    def fill(self, crops: Mapping[Picture, Crop], emit):
        """Prepare what is missing. Raises UserError for a mask that can no longer be read."""
        missing = [(picture, crop) for picture, crop in crops.items()
                   if picture.mask and self.key(picture, crop) not in self.cache]
        ensure_space(self.cache.folder, sum(1000 + crop.bucket[0] * crop.bucket[1] // 16 for _, crop in missing))
        for done, (picture, crop) in enumerate(missing, start=1):
            read = read_transparency if picture.mask == picture.path else read_mask
            try:
                mask = read(Path(picture.mask))
            except UserError as problem:
                raise UserError(f"{problem}. It is the mask of {picture.name!r} and could be read when the run was queued; "
                                "restore it, or queue again.") from None
            self.cache.put(self.key(picture, crop), {"mask": latent_mask(mask, crop, self.downscale)})
            emit("encoding", what="masks", done=done, total=len(missing))

    def reader(self, picture: Picture, crop: Crop):
        """A function that returns the picture's mask; ones where it has none."""
        key = self.key(picture, crop)

        def read() -> torch.Tensor:
            if not picture.mask:
                width, height = crop.bucket
                return torch.ones((1, height // self.downscale, width // self.downscale))
            try:
                return self.cache.get(key)["mask"]
            except KeyError:
                raise UserError(f"The cached mask of {picture.name!r} has disappeared from the cache folder during the "
                                "run. Queue again; it will be prepared anew.") from None
        return read
