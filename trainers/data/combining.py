"""Several datasets as one, and one as two."""
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..spec import DatasetImage, DatasetSpec
from ..words import clause
from .manifest import MOST_REPEATS
from .split import split

MOST_WEIGHT = 100
"""Of one image, as its spec takes it."""
LONGEST_NAME = 200


@dataclass(frozen=True)
class Concept:
    """A dataset in a combination: how often its images come and how much their loss counts, times their own."""

    dataset: DatasetSpec
    repeats: int = 1
    weight: float = 1.0

    @property
    def images_an_epoch(self) -> int:
        return self.repeats * sum(image.repeats for image in self.dataset.images)


def combine(parts: Sequence[Concept]) -> DatasetSpec:
    """One dataset of all images. Names that several datasets have get their dataset's in front.

    Every dataset's trigger is in its captions already; the whole has a trigger only where all have the same. Raises
    UserError for no datasets, and for repeats and weights that multiply to more than a spec takes.
    """
    if not parts:
        raise UserError("No dataset is connected. Connect at least one to dataset_1.")
    names = Counter(name for part in parts for name in {image.name for image in part.dataset.images})
    images = [_changed(image, part, names[image.name] > 1) for part in parts for image in part.dataset.images]
    triggers = list(dict.fromkeys(part.dataset.trigger for part in parts))
    notes = [f"{part.dataset.name}: {note}" for part in parts for note in part.dataset.notes] if len(parts) > 1 else [
        *parts[0].dataset.notes]
    if len(triggers) > 1:
        listed = ", ".join(repr(trigger) if trigger else "none" for trigger in triggers)
        notes.append(f"the datasets have different triggers ({listed}), which stay in their captions; the whole has none, "
                     "so captions are not checked for a trigger, and where a node needs one, type it there")
    return DatasetSpec(
        name=" + ".join(part.dataset.name for part in parts)[:LONGEST_NAME], images=tuple(images),
        trigger=triggers[0] if len(triggers) == 1 else "", notes=(*notes, *copy_notes(images)))


def _changed(image: DatasetImage, part: Concept, ambiguous: bool) -> DatasetImage:
    repeats, weight = image.repeats * part.repeats, image.weight * part.weight
    if repeats > MOST_REPEATS:
        raise UserError(f"{image.name} of {part.dataset.name!r} would come {repeats} times in one round, and at most "
                        f"{MOST_REPEATS} is possible. Lower its repeats here or in the dataset.")
    if weight > MOST_WEIGHT:
        raise UserError(f"{image.name} of {part.dataset.name!r} would have the weight {weight:g}, and at most "
                        f"{MOST_WEIGHT} is possible. Lower its weight.")
    name = f"{part.dataset.name}/{image.name}" if ambiguous else image.name
    return image.model_copy(update={"name": name, "repeats": repeats, "weight": weight})


def copy_notes(images: Sequence[DatasetImage]) -> list[str]:
    """Images whose files are equal byte by byte."""
    first, copies = {}, []
    for image in images:
        if first.setdefault(image.digest, image) is not image:
            copies.append(image)
    if not copies:
        return []
    return [f"{clause(len(copies), 'image', 'are copies of others and count twice', len(images))}, "
            f"{copies[0].name} of {first[copies[0].digest].name} for example"]


def size_range(images: Sequence[DatasetImage]) -> str:
    """"512×512 pixels", or the sizes of the image with the fewest pixels and of that with the most."""
    sizes = [image.size for image in images]
    smallest, largest = (f"{width}×{height}" for width, height in (
        choose(sizes, key=lambda size: (size[0] * size[1], size)) for choose in (min, max)))
    return f"{smallest} pixels" if smallest == largest else f"{smallest} to {largest} pixels"


def share_lines(parts: Sequence[Concept]) -> list[str]:
    """How much of an epoch each dataset is, and of the loss where weights differ."""
    total = sum(part.images_an_epoch for part in parts)
    losses = [part.repeats * part.weight * sum(each.repeats * each.weight for each in part.dataset.images)
              for part in parts]
    whole, lines = sum(losses), []
    for part, loss in zip(parts, losses):
        line = (f"{part.dataset.name}: {part.images_an_epoch} of {total} images of an epoch "
                f"({part.images_an_epoch / total:.0%})")
        weighted = whole and abs(loss / whole - part.images_an_epoch / total) > 0.005
        lines.append(f"{line}, {loss / whole:.0%} of the loss" if weighted else line)
    return lines if whole else [*lines, "All weights are 0: nothing would be learned"]


def divide(dataset: DatasetSpec, fraction: float) -> tuple[DatasetSpec, DatasetSpec]:
    """(the dataset to train, the images held out of it), as the validation of a run divides. Raises UserError for a
    dataset that has no two different images."""
    if len({image.digest for image in dataset.images}) < 2:
        raise UserError(f"The dataset {dataset.name!r} has a single image, or only copies of one, which cannot be trained "
                        "and held out too. Add images.")
    sides = zip(split(dataset.images, fraction), ("training", "held out"))
    trained, held_out = (dataset.model_copy(update={"images": tuple(side), "name": f"{dataset.name} ({name})"})
                         for side, name in sides)
    return trained, held_out
