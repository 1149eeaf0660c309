"""Masks at the size of the latents, in the cache."""
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..data.images.buckets import Crop
from ..data.images.masks import latent_mask, read_mask, read_transparency
from ..errors import UserError
from ..events import Emit, EncodingEvent
from ..files import ensure_space
from ..spec import DatasetImage
from .tensor_cache import TensorCache


class MaskCache:
    """Masks at the size of the latents, kept by the mask's content and the crop."""

    def __init__(self, caches: str, downscale: int):
        self.cache, self.downscale = TensorCache(Path(caches) / "masks"), downscale

    def key(self, image: DatasetImage, crop: Crop) -> str:
        own = image.mask == image.path
        return TensorCache.key(image.mask_digest, own, crop.key, self.downscale)

    def fill(self, crops: Iterable[tuple[DatasetImage, Crop]], emit: Emit):
        """Prepare what is missing. Raises UserError for a mask that can no longer be read."""
        masked = [(image, crop) for image, crop in dict.fromkeys(crops) if image.mask]
        there = self.cache.use(self.key(*each) for each in masked)
        missing = [each for each in masked if self.key(*each) not in there]
        ensure_space(self.cache.folder, sum(1000 + crop.bucket[0] * crop.bucket[1] // 16 for _, crop in missing))
        for done, (image, crop) in enumerate(missing, start=1):
            read = read_transparency if image.mask == image.path else read_mask
            try:
                mask = read(Path(image.mask))
            except UserError as problem:
                raise UserError(f"{problem}. It is the mask of {image.name!r} and could be read when the run was queued; "
                                "restore it, or queue again.") from None
            self.cache.put(self.key(image, crop), {"mask": latent_mask(mask, crop, self.downscale)})
            emit(EncodingEvent(what="masks", done=done, total=len(missing)))

    def reader(self, image: DatasetImage, crop: Crop) -> Callable[[], Tensor]:
        """A function that returns the image's mask; ones where it has none."""
        key = self.key(image, crop)

        def read() -> Tensor:
            if not image.mask:
                width, height = crop.bucket
                return torch.ones((1, height // self.downscale, width // self.downscale))
            try:
                return self.cache.get(key)["mask"]
            except KeyError:
                raise UserError(f"The cached mask of {image.name!r} has disappeared from the cache folder during the "
                                "run. Queue again; it will be prepared anew.") from None
        return read
