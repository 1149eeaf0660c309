"""What can be wrong with the captions of a dataset: judged as text, with the tokenizer of the text encoder."""
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence

from ...spec import DatasetSpec
from ...vocabulary import Tokenizer
from ...words import folded, one_line, whole_word, words_of
from ..captions.caption_editing import tags_of
from ..captions.trigger_advice import LITTLE_WORDS, word_notes
from .image_quality import Finding

CLIP_TOKENS = 75
"""Tokens of CLIP's 77 that are left for the caption between the start and the end."""
ENOUGH_CAPTIONS = 3
"""With fewer captions it is chance that all of them hold a word."""


def lint(dataset: DatasetSpec, trigger: str, tokenizer: Tokenizer, room: int = CLIP_TOKENS,
         cut: bool = True) -> list[Finding]:
    """Findings on the captions, the gravest first. `trigger` may be empty; `room` tokens of `tokenizer` are what the text
    encoder takes of a caption. Longer ones are `cut`, or read whole."""
    captions = [one_line(image.caption) for image in dataset.images]
    findings = [empty(captions), *(trigger_findings(captions, trigger, tokenizer) if trigger else []),
                too_long(captions, tokenizer, room, cut), *duplicates(dataset, captions, trigger),
                *(fused(captions, trigger) if trigger else [])]
    return [finding for finding in findings if finding]


def _places(captions: Sequence[str], holds: Callable[[str], object]) -> tuple[int, ...]:
    return tuple(place for place, caption in enumerate(captions) if holds(caption))


def empty(captions: Sequence[str]) -> Finding | None:
    places = _places(captions, lambda caption: not caption)
    text = (f"{count(places)} no caption: nothing there is tied to words, and the image acts in every prompt. Caption it, "
            "unless that is meant.")
    return Finding("empty caption", "no caption", text, places) if places else None


# ---- the trigger word ----------------------------------------------------------------------------------------------

def trigger_findings(captions: Sequence[str], trigger: str, tokenizer: Tokenizer) -> list[Finding]:
    whole, apart = whole_word(trigger), _letters_apart(trigger)
    without = _places(captions, lambda caption: caption and not whole.search(caption))
    split = {place: found[0] for place in without if (found := apart.search(captions[place]))}
    missing = tuple(place for place in without if place not in split)
    findings = []
    if split:
        places = tuple(split)
        example = next(iter(split.values()))
        findings.append(Finding(
            "split trigger", "trigger split", f"{count(places)} the trigger {trigger!r} written in another way, for example "
            f"{example!r}, which other tokens stand for. Write it alike everywhere, with Replace in Captions.", places))
    if missing:
        findings.append(Finding(
            "missing trigger", "no trigger", f"{count(missing)} no trigger {trigger!r}: it learns nothing from there. Add "
            "it with Trigger Word.", missing))
    notes = word_notes(trigger, tokenizer)
    return findings + [Finding("trigger word", "", f"{note[0].upper()}{note[1:]}.") for note in notes]


def _letters_apart(trigger: str) -> re.Pattern:
    """Finds the letters of a trigger with other blanks, hyphens, underscores, commas or full stops between them."""
    letters = re.findall(r"[^\W_]", trigger)
    if len(letters) < 3:  # "a b" is no "ab"
        return re.compile("(?!)")
    return re.compile(r"(?<![\w-])" + r"[\s\-_,.]*".join(map(re.escape, letters)) + r"(?![\w-])", re.IGNORECASE)


# ---- length --------------------------------------------------------------------------------------------------------

def tokens_of(caption: str, tokenizer: Tokenizer) -> int:
    """Tokens without those for the start and the end."""
    return len(tokenizer(caption, truncation=False, verbose=False, add_special_tokens=False).input_ids)


def cut_at(caption: str, tokenizer: Tokenizer, room: int) -> str:
    """The words of a caption that the text encoder does not get, or does not get whole; empty where all fit."""
    words = caption.split()
    if tokens_of(caption, tokenizer) <= room:
        return ""
    fits, over = 0, len(words)
    while over - fits > 1:
        middle = (fits + over) // 2
        if tokens_of(" ".join(words[:middle]), tokenizer) <= room:
            fits = middle
        else:
            over = middle
    return " ".join(words[fits:])


def too_long(captions: Sequence[str], tokenizer: Tokenizer, room: int, cut: bool = True) -> Finding | None:
    lost = {place: end for place, caption in enumerate(captions) if (end := cut_at(caption, tokenizer, room))}
    if not lost:
        return None
    longest = max(lost, key=lambda place: len(lost[place]))
    if not cut:
        return Finding("too long", "long", f"{count(lost)} a caption longer than the {room} tokens that the model was made "
                       "for. It is read whole, and its end is understood less well.", tuple(lost))
    return Finding("too long", "cut", f"{count(lost)} a caption longer than the {room} tokens that the text encoder takes. "
                   f"Of No. {longest + 1} it does not see: … {shortened(lost[longest])}", tuple(lost))


# ---- captions compared ---------------------------------------------------------------------------------------------

def duplicates(dataset: DatasetSpec, captions: Sequence[str], trigger: str) -> list[Finding]:
    """Captions that other images have too. Copies of one image may share theirs, and class images and single subjects
    have one caption for all on purpose: that is a finding of its own kind."""
    groups: dict[str, list[int]] = {}
    for place, caption in enumerate(captions):
        if caption:
            groups.setdefault(folded(caption), []).append(place)
    repeated = [places for places in groups.values() if len({dataset.images[place].digest for place in places}) > 1]
    if len(groups) == 1 and repeated and len(repeated[0]) == len(captions):
        return [Finding("one caption", "", f"All captions are {captions[0]!r}. That does for one subject; otherwise what "
                        "differs between the images cannot be called up.")]
    if not repeated:
        return []
    places = tuple(sorted(place for group in repeated for place in group))
    most = max(repeated, key=len)
    return [Finding("duplicate caption", "same caption", f"{count(places)} the caption of another image, most often "
                    f"{shortened(captions[most[0]])!r} ({len(most)} times). What sets them apart has no words.", places)]


def fused(captions: Sequence[str], trigger: str) -> list[Finding]:
    """Tags, and words of sentences, that stand in every caption together with the trigger."""
    together = [caption for caption in captions if whole_word(trigger).search(caption)]
    if len(together) < ENOUGH_CAPTIONS:
        return []
    lists = [[whole_word(trigger).sub("", tag).strip() for tag in tags_of(caption)] for caption in together]
    tags = common(lists)
    words = [word for word in common([_words(whole_word(trigger).sub("", caption)) for caption in together])
             if not any(word in _words(tag) for tag in tags)]
    if not tags + words:
        return []
    named = ", ".join(map(repr, (tags + words)[:8]))
    text = (f"In every caption that holds {trigger!r} there is also {named}: what that means is learned as part of the "
            "trigger. Right for the subject's class; vary or remove what should stay free.")
    return [Finding("fused with the trigger", "", text)]


def common(lists: Sequence[Sequence[str]]) -> list[str]:
    """What all lists hold, whatever its case, in the order of the first."""
    shared = set.intersection(*({folded(each) for each in row} for row in lists)) - {""}
    return list(dict.fromkeys(folded(each) for each in lists[0] if folded(each) in shared))


def _words(text: str) -> list[str]:
    return [word for word in words_of(text) if word not in LITTLE_WORDS]


def frequencies(captions: Sequence[str]) -> list[tuple[str, int]]:
    """How many captions hold each tag, or each word where captions have fewer than three tags on average and so are
    sentences; the most frequent first."""
    as_tags = sum(caption.count(",") for caption in captions) >= 2 * len(captions)
    parts = [set(map(folded, tags_of(caption))) if as_tags else set(_words(caption)) for caption in captions]
    return sorted(Counter(part for row in parts for part in row).items(), key=lambda item: (-item[1], item[0]))


# ---- words ---------------------------------------------------------------------------------------------------------

def count(places: Collection[int]) -> str:
    return "1 image has" if len(places) == 1 else f"{len(places)} images have"


def shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[:most - 1].rstrip() + "…"
