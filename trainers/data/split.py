"""Which images are held out for validation: decided by each image's own content, so that it keeps its side when others
come or go."""
import hashlib
from collections.abc import Sequence

from ..spec import DatasetImage

RANGE = 2**64


def number_of(digest: str) -> int:
    """A number below 2⁶⁴ for an image's digest, evenly spread and independent of every other use of the digest."""
    return int.from_bytes(hashlib.sha256(f"validation {digest}".encode()).digest()[:8], "big")


def split(images: Sequence[DatasetImage], fraction: float) -> tuple[list[DatasetImage], list[DatasetImage]]:
    """(training images, held-out images), both in their order. About `fraction` of the images are held out, copies of
    one image together.

    At least one image is on either side: in a small dataset the one with the lowest number is held out, or the one with
    the highest is trained, whatever the fraction says. A spec refuses a dataset in which that cannot be.
    """
    if not fraction:
        return list(images), []
    numbers = {image.digest: number_of(image.digest) for image in images}
    lowest, highest = min(numbers.values()), max(numbers.values())
    held_out = {
        digest for digest, number in numbers.items()
        if number == lowest or (number < fraction * RANGE and number != highest)
    }
    return ([image for image in images if image.digest not in held_out],
            [image for image in images if image.digest in held_out])
