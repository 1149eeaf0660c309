"""Variants of an image that are made once and cached: mirrored, cut closer, in other colors, with grain.

Variants are drawn from the image's digest and their number, not from the training seed: runs with other seeds find them
in the cache, and show another variant in each step. What a variant is, is in its `View` as plain numbers, which are also
what it is cached by; a variant that changes nothing is the plain image.
"""
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

from ... import randomness
from ...spec import DatasetImage
from .buckets import Crop
from .image_files import cut_image

PLAIN = (1.0, 1.0, 1.0)
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class View:
    """A way to look at an image: where it is cut, its brightness, contrast and saturation as factors, and the standard
    deviation of the noise on it, where black to white is 1."""

    crop: Crop
    color: tuple[float, float, float] = PLAIN
    noise: float = 0.0
    noise_seed: int = 0

    @property
    def appearance(self) -> tuple:
        """What changes pixels besides the crop, for a cache's key; empty for the image as it is."""
        return (*self.color, self.noise, self.noise_seed) if self.noise or self.color != PLAIN else ()


def views_of(image: DatasetImage, crop: Crop) -> list[View]:
    """The variants that the image's augmentation asks for; the plain image alone where it asks for none. `crop` is the
    way of the plain image into its bucket; all variants share the bucket."""
    settings, views = image.augmentation, []
    digest = int.from_bytes(hashlib.sha256(f"augmentation {image.digest}".encode()).digest()[:8], "big")
    for variant in range(settings.variants):
        # All numbers are drawn always, in the same order, so that one setting does not change what another does.
        generator = randomness.generator(digest, randomness.AUGMENTATION, variant)
        amount, left, top, *colors = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        noise_seed = int(torch.randint(2**62, (), generator=generator))
        views.append(View(
            crop=closer(crop, settings.crop * amount, left, top, settings.flip and variant % 2 == 1),
            color=tuple(1 + settings.color * (2 * number - 1) for number in colors),
            noise=settings.noise, noise_seed=noise_seed if settings.noise else 0,
        ))
    return list(dict.fromkeys(views))


def closer(crop: Crop, fraction: float, left: float, top: float, mirrored: bool) -> Crop:
    """The crop with `fraction` of either side cut away first, at the place `left`, `top` in 0…1, where 0.5 is the middle:
    the rest goes into the same bucket, enlarged."""
    width, height = (max(side, round(side / (1 - fraction))) for side in crop.resized)
    return Crop(crop.original, (width, height), round(crop.left + (width - crop.resized[0]) * left),
                round(crop.top + (height - crop.resized[1]) * top), crop.bucket, mirrored)


def view_pixels(image: Image.Image, view: View) -> torch.Tensor:
    """The image as the view shows it, uint8 [3, height, width]."""
    cut = cut_image(image, view.crop)
    for enhancer, factor in zip(ENHANCERS, view.color):
        if factor != 1:
            cut = enhancer(cut).enhance(factor)
    pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    if view.noise:
        generator = torch.Generator().manual_seed(view.noise_seed)
        grain = 255 * view.noise * torch.randn(pixels.shape, generator=generator)
        pixels = (pixels + grain).round().clamp(0, 255).byte()
    return pixels
