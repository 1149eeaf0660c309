"""Which pictures are held out for validation: decided by each picture's own content, so that it keeps its side when others
come or go."""
import hashlib
from typing import Sequence

from ..spec import Picture

RANGE = 2**64


def number_of(digest: str) -> int:
    """A number below 2⁶⁴ for a picture's digest, evenly spread and independent of every other use of the digest."""
    return int.from_bytes(hashlib.sha256(f"validation {digest}".encode()).digest()[:8], "big")


def split(pictures: Sequence[Picture], share: float) -> tuple[list[Picture], list[Picture]]:
    """(training pictures, held-out pictures), both in their order. About `share` of the pictures are held out, copies of
    one picture together.

    At least one picture is on either side: in a small dataset the one with the lowest number is held out, or the one with
    the highest is trained, whatever the share says. A spec refuses a dataset in which that cannot be.
    """
    if not share:
        return list(pictures), []
    numbers = {picture.digest: number_of(picture.digest) for picture in pictures}
    lowest, highest = min(numbers.values()), max(numbers.values())
    held_out = {
        digest for digest, number in numbers.items()
        if number == lowest or number < share * RANGE and number != highest
    }
    return ([picture for picture in pictures if picture.digest not in held_out],
            [picture for picture in pictures if picture.digest in held_out])
