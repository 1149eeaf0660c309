"""Captions out of texts: where a new text goes, and texts that need no model."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from ..data.captions.trigger_word import with_trigger
from ..errors import UserError
from ..spec import DatasetImage, DatasetSpec
from ..words import printable, whole_word
from .articles import with_article

Mode = Literal["replace", "only missing", "in front", "behind"]
REPLACE, MISSING, FRONT, BEHIND = MODES = get_args(Mode)
FIELDS = ("name", "folder", "index", "trigger", "caption")
CAMERA_NAMES = re.compile(r"^(img|image|dscn?|dscf|pxl|mvimg|vid|scan|screenshot|photo|p)(?=[\s\d]*$)", re.IGNORECASE)
"""What cameras and programs call images by themselves."""
NUMBER_BEHIND = re.compile(r"[\s#~.-]*(\(\s*\d*\s*\)|\d+|-\s*(copy|kopie))$", re.IGNORECASE)
NUMBER_IN_FRONT = re.compile(r"^(\(\s*\d+\s*\)|#?\d+)([\s.~-]+|$)")
MARKS = " ,;:.-，、；：。"


def wanted(dataset: DatasetSpec, mode: Mode) -> list[DatasetImage]:
    """The images whose caption will change."""
    if mode not in MODES:
        raise UserError(f"mode is {mode!r}. Choose one of: {', '.join(MODES)}.")
    return [image for image in dataset.images if mode != MISSING or not own_words(image.caption, dataset.trigger)]


def own_words(caption: str, trigger: str) -> str:
    """The caption without a trigger word at its front."""
    words = caption.strip()
    found = whole_word(trigger).match(words)
    return words[found.end():].lstrip(MARKS) if found else words


def merged(old: str, new: str, mode: Mode, trigger: str) -> str:
    """The caption that an image gets, on one line. The trigger word stays where it is, or comes to the front."""
    new = " ".join(new.split())
    parts = {FRONT: [new, own_words(old, trigger)], BEHIND: [old, new]}.get(mode, [new])
    parts = [part for part in parts if part]
    return with_trigger(", ".join([*(part.rstrip(MARKS) for part in parts[:-1]), *parts[-1:]]), trigger)


def with_captions(dataset: DatasetSpec, texts: Mapping[str, str], mode: Mode) -> DatasetSpec:
    """The dataset with texts, by the paths of images, put into the captions. Nothing on the disk changes."""
    chosen = set(wanted(dataset, mode))
    images = tuple(
        image.model_copy(update={"caption": merged(image.caption, texts[image.path], mode, dataset.trigger)})
        if image in chosen and image.path in texts else image
        for image in dataset.images
    )
    return dataset.model_copy(update={"images": images})


def listing(dataset: DatasetSpec) -> str:
    """All captions, an image a line."""
    return "\n".join(f"{image.name}: {image.caption}" for image in dataset.images)


def words_of(name: str) -> str:
    """What a file or folder name says: without numbering, underscores and the names that cameras give; "" when it says
    nothing. `10_red-haired girl (2)` gives "red-haired girl"."""
    text = re.sub(r"[_+\s\ufffd]+|%20", " ", name).strip()
    if " " not in text:  # my-old-cat: hyphens are its spaces; among spaces they belong to words
        text = text.replace("-", " ")
    before = None
    while before != text:
        before = text
        text = CAMERA_NAMES.sub("", NUMBER_IN_FRONT.sub("", NUMBER_BEHIND.sub("", text))).strip(" -.,#~")
    return text


def fill(template: str, image: DatasetImage, number: int, trigger: str) -> str:
    """A template with its fields filled in: {name}, {folder}, {index}, {trigger}, {caption}. An article in front of what is
    filled in follows its sound, but for a trigger, which is no word of a language. Raises UserError for other fields."""
    path = Path(image.path)
    values = {"name": words_of(Path(image.name).stem), "folder": words_of(printable(path.parent.name)),
              "index": str(number), "trigger": trigger, "caption": own_words(image.caption, trigger)}

    def value(match: re.Match) -> str:
        if match[1] not in values:
            raise UserError(f"The template has the field {match[0]}, which there is not. There are: "
                            f"{', '.join(f'{{{name}}}' for name in FIELDS)}.")
        return values[match[1]]

    pieces, place = [], 0
    for match in re.finditer(r"\{([^{}]*)\}", template):
        words, before = value(match), template[place:match.start()]
        pieces += [before if match[1] == "trigger" else with_article(before, words), words]
        place = match.end()
    text = " ".join("".join([*pieces, template[place:]]).split())
    text = re.sub(r"\s+([,.;:])", r"\1", text)
    return re.sub(r"(,\s*){2,}", ", ", text).strip(" ,")


def from_names(dataset: DatasetSpec, template: str, mode: Mode) -> tuple[DatasetSpec, list[str]]:
    """(the dataset with captions out of a template, notes). Raises UserError for a template that says nothing."""
    if not template.strip():
        raise UserError("The template is empty. Type what captions shall be, for example: a photo of {name}")
    chosen = wanted(dataset, mode)
    texts = {image.path: fill(template, image, number, dataset.trigger)
             for number, image in enumerate(dataset.images, start=1)}
    silent = [image.name for image in chosen if not words_of(Path(image.name).stem)] if "{name}" in template else []
    notes = [f"{len(silent)} of {len(chosen)} file names hold no words, for example {silent[0]}; {{name}} is empty "
             "there"] if silent else []
    return with_captions(dataset, texts, mode), notes
