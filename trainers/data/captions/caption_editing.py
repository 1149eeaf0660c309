"""Captions changed once, for good: a caption goes in, a caption comes out. What is picked anew in every step is elsewhere.

A tag is what stands between two separators; a sentence without any is a single tag.
"""
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from ...errors import UserError
from ...spec import DatasetImage, DatasetSpec
from ...words import clause, counted, folded, holds, one_line, whole_word

FRONT, BACK, BEFORE_CLASS, REPLACE_CLASS = "front", "back", "before class word", "instead of class word"
PLACES = (FRONT, BACK, BEFORE_CLASS, REPLACE_CLASS)
Order = Literal["as they are", "alphabetical", "most frequent first"]


def edit_captions(dataset: DatasetSpec, edit: Callable[[str], str], notes: Sequence[str] = ()) -> DatasetSpec:
    """The dataset with every caption edited, and with further notes. Nothing else of it changes."""
    images = tuple(image.model_copy(update={"caption": edit(image.caption)}) for image in dataset.images)
    return dataset.model_copy(update={"images": images, "notes": (*dataset.notes, *notes)})


# ---- trigger word --------------------------------------------------------------------------------------------------

def place_trigger(dataset: DatasetSpec, trigger: str, place: str, class_word: str = "") -> DatasetSpec:
    """Put a trigger word into every caption that lacks it, and make it the dataset's.

    `place` is one of PLACES. The first `class_word` of a caption is kept behind the trigger or gives way to it; captions
    without that word get the trigger in front, and a note counts them. Raises UserError for words that are missing.
    """
    if not trigger:
        raise UserError("trigger is empty. Type the word that shall call up what is trained, for example ohwx.")
    if place not in PLACES:
        raise UserError(f"place is {place!r}. Choose one of: {', '.join(PLACES)}.")
    at_class = place in (BEFORE_CLASS, REPLACE_CLASS)
    if at_class and not class_word:
        raise UserError(f"place is {place!r}, but class_word is empty. Type the word that the captions use for the "
                        "subject, for example dog, or choose front.")
    subject = whole_word(class_word)

    def edit(caption: str) -> str:
        if holds(caption, trigger):
            return caption
        if at_class and (found := subject.search(caption)):
            put = trigger if place == REPLACE_CLASS else f"{trigger} {found[0]}"
            before, after = caption[:found.start()], caption[found.end():]
            edited = f"{before}{put}{after}"
            return edited if holds(edited, trigger) else one_line(f"{before} {put} {after}")
        parts = [caption, trigger] if place == BACK else [trigger, caption]
        return ", ".join(part for part in parts if part)

    notes = []
    if at_class:
        without = sum(not holds(each.caption, trigger) and not subject.search(each.caption) for each in dataset.images)
        if without:
            notes.append(clause(without, "caption", f"lack the class word {class_word!r}: the trigger {trigger!r} is put in "
                                "front", len(dataset.images)))
    return edit_captions(dataset, edit, notes).model_copy(update={"trigger": trigger})


# ---- tags ----------------------------------------------------------------------------------------------------------

def tags_of(caption: str, separator: str = ",") -> list[str]:
    return [tag for tag in (one_line(part) for part in caption.split(separator)) if tag]


def tag_list(text: str) -> list[str]:
    """The tags that a person listed, with commas or line by line."""
    return [tag for line in text.splitlines() for tag in tags_of(line)]


@dataclass(frozen=True)
class TagEdit:
    """What happens to the tags of a caption, in the order of these fields. `*` in a listed tag stands for anything, and
    case does not count."""

    keep_first: int = 0
    """Tags at the front that stay, and stay there, whatever the other fields say."""
    remove: Sequence[str] = ()
    keep_only: Sequence[str] = ()
    """Where not empty, all other tags go."""
    deduplicate: bool = False
    order: Order = "as they are"
    to_front: Sequence[str] = ()
    limit: int = 0
    """Most tags in a caption, those kept at the front among them; 0 for all."""
    separator: str = ","


def edit_tags(dataset: DatasetSpec, rule: TagEdit) -> DatasetSpec:
    """The dataset with the tags of its captions edited. A trigger word that is the first tag stays the first."""
    if not rule.separator.strip():
        raise UserError("separator is empty. Type what stands between tags, which is usually a comma.")
    separator = rule.separator.strip()
    frequency = tag_frequency((image.caption for image in dataset.images), separator)
    glue = f"{separator} " if separator in ",;" else f" {separator} "

    def tags_of_trigger(caption: str) -> int:
        found = whole_word(dataset.trigger).match(caption.lstrip())
        behind = caption.lstrip()[found.end():].lstrip() if found else "none"
        return len(tags_of(found[0], separator)) if found and (not behind or behind.startswith(separator)) else 0

    def edit(caption: str) -> str:
        tags = tags_of(caption, separator)
        kept = max(rule.keep_first, tags_of_trigger(caption))
        front, rest = tags[:kept], tags[kept:]
        rest = [tag for tag in rest if not listed(tag, rule.remove)]
        if rule.keep_only:
            rest = [tag for tag in rest if listed(tag, rule.keep_only)]
        if rule.deduplicate:
            first = {}
            for tag in front:
                first.setdefault(folded(tag), None)
            rest = [tag for tag in rest if not (folded(tag) in first or first.update({folded(tag): None}))]
        if rule.order == "alphabetical":
            rest.sort(key=folded)
        elif rule.order == "most frequent first":
            rest.sort(key=lambda tag: (-frequency[folded(tag)], folded(tag)))
        ranks = {tag: rank for rank, tag in enumerate(reversed(rule.to_front))}
        rest.sort(key=lambda tag: -max((rank for each, rank in ranks.items() if listed(tag, [each])), default=-1))
        edited = front + rest[:max(0, rule.limit - len(front))] if rule.limit else front + rest
        return caption if edited == tags else glue.join(edited)

    return edit_captions(dataset, edit)


def listed(tag: str, patterns: Iterable[str]) -> bool:
    """Whether a tag is among those listed. Only `*` is special: brackets and question marks occur in tags."""
    return any(fnmatchcase(folded(tag), re.sub(r"([\[?])", r"[\1]", folded(pattern))) for pattern in patterns)


def tag_frequency(captions: Iterable[str], separator: str = ",") -> Counter:
    """Tag without case → in how many captions it occurs."""
    return Counter(tag for caption in captions for tag in {folded(tag) for tag in tags_of(caption, separator)})


# ---- by hand -------------------------------------------------------------------------------------------------------

def caption_lines(dataset: DatasetSpec) -> list[str]:
    """One line for each image, as `edit_by_hand` reads them."""
    return [f"{image.name}: {one_line(image.caption)}" for image in dataset.images]


def edit_by_hand(dataset: DatasetSpec, edits: str) -> DatasetSpec:
    """New captions from lines of `file name: caption`. Images without a line keep theirs; a name alone before its colon
    empties the caption. Of images that share a name, each takes the next line with it, and the last line holds for the
    rest. Lines that name no image become notes."""
    names = sorted({image.name for image in dataset.images}, key=len, reverse=True)
    found, unknown = {}, []
    for line in filter(None, (one_line(line) for line in edits.splitlines())):
        name = next((name for name in names if line.startswith(f"{one_line(name)}:")), None)
        if name is None:
            unknown.append(line)
        else:
            found.setdefault(name, []).append(line[len(one_line(name)) + 1:].strip())
    holders = Counter(image.name for image in dataset.images)
    notes = [f"the line {line[:60]!r} names no image of the dataset and changes nothing" for line in unknown]
    notes += [f"{len(lines)} lines name {name}; the last one counts" for name, lines in found.items()
              if len(lines) > holders[name]]
    waiting = {name: list(lines if len(lines) <= holders[name] else lines[-holders[name]:]) for name, lines in found.items()}

    def new_caption(image: DatasetImage) -> str:
        lines = waiting.get(image.name)
        if not lines:
            return image.caption
        line = lines.pop(0) if len(lines) > 1 else lines[0]
        return image.caption if line == one_line(image.caption) else line

    images = tuple(image.model_copy(update={"caption": new_caption(image)}) for image in dataset.images)
    return dataset.model_copy(update={"images": images, "notes": (*dataset.notes, *notes)})


# ---- what was changed ----------------------------------------------------------------------------------------------

def describe_changes(before: DatasetSpec, after: DatasetSpec, shown: int = 8) -> str:
    """How many captions changed, the first of them before and after, and the notes that came with it."""
    changed = [(old.name, old.caption, new.caption) for old, new in zip(before.images, after.images, strict=True)
               if old.caption != new.caption]
    lines = [f"{len(changed)} of {counted(len(after.images), 'caption')} changed."]
    lines += [f"{note[0].upper()}{note[1:]}." for note in after.notes[len(before.notes):]]
    for name, old, new in changed[:shown]:
        lines.append(f"{name}: {old or '(empty)'} → {new or '(empty)'}")
    if len(changed) > shown:
        lines.append(f"… and {len(changed) - shown} more")
    return "\n".join(lines)
