"""Aspect-ratio buckets: every image is resized to the bucket of its shape, so that little is cut away.

Sizes are (width, height) in pixels. The idea is NovelAI's aspect ratio bucketing (2022): buckets of about equal area
whose sides are multiples of a step.
"""
from dataclasses import dataclass
from math import log

MAXIMUM_ASPECT = 2.5
"""Longer images are cut to this ratio of their sides; beyond it a batch holds little of the subject."""


@dataclass(frozen=True)
class Crop:
    """An image on its way into a bucket: resized to `resized`, then cut at `left`, `top` to `bucket`, then perhaps
    mirrored left to right."""

    original: tuple[int, int]
    resized: tuple[int, int]
    left: int
    top: int
    bucket: tuple[int, int]
    mirrored: bool = False

    @classmethod
    def whole(cls, width: int, height: int) -> "Crop":
        """Of an image that has the size of its bucket."""
        return cls((width, height), (width, height), 0, 0, (width, height))

    @property
    def kept(self) -> float:
        """Fraction of the image's area that is left after the cut."""
        return self.bucket[0] * self.bucket[1] / (self.resized[0] * self.resized[1])

    @property
    def enlargement(self) -> float:
        return self.resized[0] / self.original[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Original height and width, crop top and left, target height and width: SDXL's size conditioning. Of a mirrored
        image, `left` is what is cut from the left of its mirror image."""
        left = self.resized[0] - self.left - self.bucket[0] if self.mirrored else self.left
        return (*self.original[::-1], self.top, left, *self.bucket[::-1])

    @property
    def key(self) -> tuple:
        """What it does to an image, for a cache's key."""
        return self.resized, self.left, self.top, self.bucket, self.mirrored


def bucket_step(resolution: int, multiple: int = 8) -> int:
    """64 for usual resolutions, finer for small ones; always a multiple of what the model family needs (`multiple`)."""
    return max(multiple, min(64, resolution // 8) // multiple * multiple)


def bucket_sizes(resolution: int, buckets: bool = True, multiple: int = 8) -> list[tuple[int, int]]:
    """All bucket sizes: no side times side above resolution², sides multiples of the step, the square among them."""
    square = (resolution, resolution)
    if not buckets:
        return [square]
    step, sizes = bucket_step(resolution, multiple), {square}
    for width in range(step, int(resolution * MAXIMUM_ASPECT) + 1, step):
        height = resolution * resolution // width // step * step
        if height and max(width / height, height / width) <= MAXIMUM_ASPECT:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def fit(size: tuple[int, int], buckets: list[tuple[int, int]]) -> Crop:
    """Put an image into the bucket nearest in aspect ratio: cover it, cut the rest evenly from both sides."""
    width, height = size
    bucket = min(buckets, key=lambda each: (abs(log(width / height) - log(each[0] / each[1])), -each[0] * each[1]))
    factor = max(bucket[0] / width, bucket[1] / height)
    resized = max(bucket[0], round(width * factor)), max(bucket[1], round(height * factor))
    return Crop(size, resized, (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2, bucket)
