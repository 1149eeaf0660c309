"""Masks at the size of the latents, in the cache."""
from pathlib import Path
from typing import Iterable

import torch

from ..data.images.buckets import Crop
from ..data.images.masks import latent_mask, read_mask, read_transparency
from ..errors import UserError
from ..files import ensure_space
from ..spec import Picture
from .tensor_cache import TensorCache


class MaskCache:
    """Masks at the size of the latents, kept by the mask's content and the crop."""

    def __init__(self, caches: str, downscale: int):
        self.cache, self.downscale = TensorCache(Path(caches) / "masks"), downscale

    def key(self, picture: Picture, crop: Crop) -> str:
        own = picture.mask == picture.path
        return TensorCache.key(picture.mask_digest, own, crop.key, self.downscale)

    def fill(self, crops: Iterable[tuple[Picture, Crop]], emit):
        """Prepare what is missing. Raises UserError for a mask that can no longer be read."""
        masked = [(picture, crop) for picture, crop in dict.fromkeys(crops) if picture.mask]
        there = self.cache.use(self.key(*each) for each in masked)
        missing = [each for each in masked if self.key(*each) not in there]
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
