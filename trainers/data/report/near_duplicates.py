"""Images that are the same to the eye: a small copy of each, and groups of images whose small copies agree.

Hashes of 64 bits see little but the layout, which things on a white ground have in common, and lose images that were
cropped a little. So color images of SIDE × SIDE pixels are compared, brought to the same mean and contrast, also after
cutting up to a seventh of either away: copies then agree everywhere, and other images differ strongly somewhere.
"""
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

SIDE = 24
CELL, DIFFERENT = 3, 0.6
"""Pixels of a cell's side, and the most that copies differ in the mean of any cell, in standard deviations of the image.
Copies that were recompressed, resized or brightened stay below 0.35, those with a twentieth cut away around below 0.55;
images of different things, drawn alike on white, differ by 1.5 and more."""
POSSIBLE, ALIGNED = 0.4, 0.8
"""Correlation below which no cutting is tried, and that which the best cutting has at least."""
PLAIN = 2.0
"""Standard deviation, of 255, below which an image has nothing to correlate and only its color counts."""
KEPT = (0.97, 0.94, 0.91, 0.88, 0.85)
PLACES = tuple((left, top) for left in (0, 0.5, 1) for top in (0, 0.5, 1))
"""Which fraction of either side is kept of an image, and where."""


def fingerprint(image: Image.Image) -> bytes:
    """SIDE × SIDE RGB pixels of an RGB image, one byte each."""
    enlarged = min(image.size) < SIDE
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC if enlarged else Image.Resampling.BOX).tobytes()


def similar_groups(prints: Sequence[bytes | None],
                   on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[tuple[int, ...]]:
    """Groups of two or more places whose images are copies of each other, mirrored ones among them. `on_progress` is told
    how many images of how many are compared with all others."""
    known = {place: each for place, each in enumerate(prints) if each}
    groups: dict[int, list[int]] = {}
    for place, group in zip(known, _groups(list(known.values()), on_progress)):
        groups.setdefault(int(group), []).append(place)
    return sorted(tuple(members) for members in groups.values() if len(members) > 1)


def _groups(prints: Sequence[bytes], on_progress: Callable[[int, int], None], rows: int = 256) -> np.ndarray:
    """The number of each image's group: int64 [count].

    Pairs are sorted out by a quarter of the pixels, `rows` images at a time, so that memory stays small; pairs that are in
    one group already are not compared, so that the frames of a film take no longer than other images.
    """
    group = np.arange(len(prints))
    if not prints:
        return group
    pixels = np.stack([np.frombuffer(each, np.uint8) for each in prints]).reshape(-1, SIDE, SIDE, 3)
    plain = pixels.reshape(len(pixels), -1).std(axis=1) < PLAIN
    colors = pixels.reshape(len(pixels), -1, 3).mean(axis=1)

    def join(place: int, others: np.ndarray):
        group[np.isin(group, group[others])] = group[place]

    for place in np.flatnonzero(plain).tolist():
        join(place, np.flatnonzero(plain & (np.abs(colors - colors[place]).max(axis=1) < 3)))
    itself = _normalized(_halved(pixels))
    for half, turned in enumerate((pixels, pixels[:, :, ::-1])):
        fine, coarse = _normalized(turned), _normalized(_halved(turned))
        for start in range(0, len(prints), rows):
            near = (itself[start:start + rows] @ coarse.T > POSSIBLE) & ~plain & ~plain[start:start + rows, None]
            for place, row in enumerate(near, start=start):
                possible = np.flatnonzero(row & (group != group[place]))
                if len(possible):
                    cuttings = _cuttings(pixels[place])
                    agreement = coarse[possible] @ _normalized(_halved(cuttings)).T
                    aligned = agreement.max(axis=1) > ALIGNED
                    difference = _normalized(cuttings)[agreement[aligned].argmax(axis=1)] - fine[possible[aligned]]
                    join(place, possible[aligned][_largest_difference(difference) < DIFFERENT])
            on_progress((half * len(prints) + min(start + rows, len(prints))) // 2, len(prints))
    return group


def _halved(pixels: np.ndarray) -> np.ndarray:
    """Means of 2 × 2 pixels."""
    return pixels.reshape(len(pixels), SIDE // 2, 2, SIDE // 2, 2, 3).mean(axis=(2, 4))


def _cuttings(image: np.ndarray) -> np.ndarray:
    """A small image, whole and with something cut away around: uint8 [count, SIDE, SIDE, 3]."""
    small, cut = Image.fromarray(image), [image]
    for kept in KEPT:
        free = SIDE * (1 - kept)
        for left, top in PLACES:
            box = (left * free, top * free, left * free + SIDE * kept, top * free + SIDE * kept)
            cut.append(np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)))
    return np.stack(cut)


def _largest_difference(vectors: np.ndarray) -> np.ndarray:
    """The largest mean of a cell and channel in each difference of normalized vectors, in standard deviations."""
    cells = vectors.reshape(len(vectors), SIDE // CELL, CELL, SIDE // CELL, CELL, 3).mean(axis=(2, 4))
    return np.abs(cells).max(axis=(1, 2, 3), initial=0) * np.sqrt(vectors.shape[1])


def _normalized(pixels: np.ndarray) -> np.ndarray:
    """Vectors of mean 0 and length 1, float32 [count, values]."""
    vectors = pixels.reshape(len(pixels), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
