"""Find and replace in captions, by plain words or by a pattern that somebody else may have written.

A pattern in a shared workflow can be made to run for ever or to fill the memory. Python's own `re` cannot be stopped, so
patterns are run by the package `regex`, which transformers brings along: it stops after a time and lets the server go on.
"""
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ...errors import UserError
from ...spec import DatasetSpec
from ...words import WholeWord
from .caption_editing import edit_captions

if TYPE_CHECKING:
    from regex import Match, Pattern

SECONDS = 2.0
"""For all captions of a dataset together; an ordinary pattern takes some microseconds a caption."""
LONGEST_PATTERN = 500
MOST_REPEATS = 1000
"""Product of all counted repeats {n}: a compiled pattern grows with it."""
LONGEST_CAPTION = 10_000
"""Characters. Text encoders read a few hundred."""


@dataclass(frozen=True)
class Replacement:
    """`find` becomes `replace` wherever it stands, then `prefix` and `suffix` are put around the caption, unless it begins
    or ends with them already."""

    find: str = ""
    replace: str = ""
    regular_expression: bool = False
    whole_words: bool = True
    """For plain words: not as a part of longer ones."""
    match_case: bool = False
    prefix: str = ""
    suffix: str = ""

    @cached_property
    def plain_words(self) -> WholeWord | re.Pattern[str]:
        """Finds `find` as it is written."""
        flags = 0 if self.match_case else re.IGNORECASE
        whole = self.whole_words and self.find.strip()
        return WholeWord(self.find, self.match_case) if whole else re.compile(re.escape(self.find), flags)

    @cached_property
    def pattern(self) -> "Pattern[str]":
        """`find` compiled. Raises UserError that tells what is wrong with it, and where."""
        if find_spec("regex") is None:
            raise UserError("Regular expressions need the Python package regex, which is not installed. Install it with the "
                            "Python that runs ComfyUI and start ComfyUI again, or switch regular_expression off.")
        import regex

        if len(self.find) > LONGEST_PATTERN:
            raise UserError(f"find has {len(self.find)} characters; a regular expression may have {LONGEST_PATTERN}.")
        repeats = 1
        for counts in re.findall(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}", self.find):
            repeats *= max(1, *(int(count[:6] or 1) for count in counts))
        if repeats > MOST_REPEATS:
            raise UserError(f"find repeats parts of its pattern up to {repeats} times; more than {MOST_REPEATS} would take "
                            "too much memory. Use smaller counts, or * and +.")
        try:
            return regex.compile(self.find, 0 if self.match_case else regex.IGNORECASE)
        except regex.error as problem:
            # regex documents both; the annotations that go with it leave them out.
            text, position = problem.msg, problem.pos  # pyright: ignore[reportAttributeAccessIssue]
            place = "" if position is None else f" at position {position + 1}"
            raise UserError(f"find is {self.find!r}, which is not a regular expression: {text}{place}.") from None
        except (ValueError, KeyError, IndexError, OverflowError, RecursionError) as problem:
            raise UserError(f"find is {self.find!r}, which is not a regular expression: {problem}.") from None


def replace_in_captions(dataset: DatasetSpec, rule: Replacement) -> DatasetSpec:
    """The dataset with the replacement made in all captions. Raises UserError for a pattern that is wrong, takes too long
    or makes captions too long."""
    deadline = time.monotonic() + SECONDS

    def edit(caption: str) -> str:
        edited = _replaced(caption, rule, deadline) if rule.find else caption
        if not edited.startswith(rule.prefix):
            edited = rule.prefix + edited
        if not edited.endswith(rule.suffix):
            edited += rule.suffix
        return edited

    return edit_captions(dataset, edit)


def _replaced(caption: str, rule: Replacement, deadline: float) -> str:
    pieces, length, place = [], 0, 0
    for found in _matches(caption, rule, deadline):
        pieces += [caption[place:found.start()], _expanded(found, rule)]
        place, length = found.end(), length + len(pieces[-2]) + len(pieces[-1])
        if length + len(caption) - place > max(LONGEST_CAPTION, len(caption)):
            raise UserError(f"find and replace make the caption {caption[:40]!r}… longer than {LONGEST_CAPTION} characters. "
                            "Check what the pattern matches.")
    return "".join([*pieces, caption[place:]])


def _matches(caption: str, rule: Replacement, deadline: float) -> "Iterator[re.Match[str] | Match[str]]":
    if not rule.regular_expression:
        yield from rule.plain_words.finditer(caption)
        return
    try:
        yield from rule.pattern.finditer(caption, concurrent=True, timeout=max(0.001, deadline - time.monotonic()))
    except TimeoutError:
        raise UserError(f"find is {rule.find!r}, which takes longer than {SECONDS:g} seconds, at the caption "
                        f"{caption[:40]!r}. Repeats inside repeats, such as (a+)+, or several .* do that; use a simpler "
                        "pattern.") from None


def _expanded(found: "re.Match[str] | Match[str]", rule: Replacement) -> str:
    """The text that takes a match's place: as it is, or with \\1 and \\g<name> filled in."""
    if not rule.regular_expression:
        return rule.replace
    try:
        return found.expand(rule.replace)
    except Exception as problem:  # regex raises errors of many kinds for a wrong template
        raise UserError(f"replace is {rule.replace!r}, which does not fit find: {problem}. \\1 is what the first brackets "
                        "of find matched; write \\\\ for a backslash.") from None
