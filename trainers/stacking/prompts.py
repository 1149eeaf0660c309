"""LoRAs that are named in prompts, and LoRAs whose trigger words occur in them."""
import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import UserError
from ..words import folded
from .block_weights import LIMIT, parse_block_weights, shown
from .rows import StackRow

_TAG = re.compile(r"<\s*(?:lora|lyco|loha|lokr)\s*:([^<>]*)>", re.IGNORECASE)
MODEL_FIRST, TEXT_FIRST = "model, text", "text, model"


@dataclass(frozen=True)
class Mention:
    """A LoRA named in a prompt. `notes` says what of its tag was not understood."""

    name: str
    model: float
    text: float
    blocks: str = ""
    notes: tuple[str, ...] = ()


def read_prompt(prompt: str, order: str = MODEL_FIRST) -> tuple[str, list[Mention]]:
    """(the prompt without its `<lora:…>` tags, what they name). Raises UserError for numbers that are none.

    `<lora:name>`, `<lora:name:0.8>` (both strengths), `<lora:name:0.8:0.6>`, `<lora:name:unet=0.8:te=0.6>`, and
    `:lbw=` with a preset or a list of block weights; a third part without a name is block weights too, as in LoRA Block
    Weight. `order` says what the two numbers are: ComfyUI's packs write the model's first, Automatic1111 the text's. Blanks
    may stand anywhere; those around a name may belong to it, which `resolve` finds out.
    """
    mentions = [_mention(match[1], order) for match in _TAG.finditer(prompt)]
    return _tidy(_TAG.sub("\0", prompt)), mentions


def _tidy(text: str) -> str:
    """Remove the marks where tags were, together with a comma that stood beside each."""
    text = re.sub(r"[ \t]*\0(?:[ \t]*\0)*", "\0", text)
    text = re.sub(r",\0[ \t]*(?=,|$|\n)", "", text)
    text = re.sub(r"(^|\n)\0[ \t]*,?[ \t]*", r"\1", text)
    return re.sub(r"\0", "", text).strip(" \t")


def _mention(content: str, order: str) -> Mention:
    written, *pieces = content.split(":")
    name = written.strip()
    numbers, named, notes = [], {}, []
    for piece in map(str.strip, pieces):
        key, equals, value = (part.strip() for part in piece.partition("="))
        if equals and key.lower() in ("unet", "te", "lbw", "model", "clip", "text"):
            named[key.lower()] = value
        elif equals:
            notes.append(f"{key}= of {shown(name)} has no meaning here and was passed over")
        elif len(numbers) == 2 or (numbers and re.fullmatch(r"[A-Za-z]\w*|[^,]+(,[^,]+)+", piece)):
            named["lbw"] = piece
        elif piece:
            numbers.append(_strength(piece, name))
    first = numbers[0] if numbers else None
    second = numbers[1] if len(numbers) > 1 else first
    model, text = (first, second) if order == MODEL_FIRST else (second, first)
    for key in ("unet", "model"):
        model = _strength(named[key], name) if key in named else model
    for key in ("te", "clip", "text"):
        text = _strength(named[key], name) if key in named else text
    # One named strength alone stands for both, as in Automatic1111.
    model, text = (text if model is None else model), (model if text is None else text)
    model, text = (1.0 if value is None else value for value in (model, text))
    return Mention(name.strip("\"'") if name[:1] in ("'", '"') else written, model, text, named.get("lbw", ""), tuple(notes))


def _strength(value: str, name: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= LIMIT:
        raise UserError(f"The prompt gives the LoRA {shown(name)} the strength {shown(value)}. Write a number from "
                        f"-{LIMIT:g} to {LIMIT:g}, for example <lora:name:0.8>.")
    return number


def resolve(name: str, choices: Sequence[str]) -> str | None:
    """The file that a name means: its path relative to a loras folder, or its last part, with or without suffix, whatever
    the case, the encoding of accents and the blanks around it. What is most alike wins, then what is first in `choices`;
    None when there is none."""
    wanted = name.replace("\\", "/").strip("/")
    for spelled in (str, _alike):
        for form in (_whole, _without_suffix, _last, _stem):
            for choice in choices:
                if spelled(form(choice)) == spelled(wanted):
                    return choice
    return None


def _alike(name: str) -> str:
    return re.sub(r" ?([/.]) ?", r"\1", " ".join(folded(name).split()))


def _whole(choice: str) -> str:
    return choice.replace("\\", "/")


def _without_suffix(choice: str) -> str:
    return str(PurePosixPath(_whole(choice)).with_suffix(""))


def _last(choice: str) -> str:
    return PurePosixPath(_whole(choice)).name


def _stem(choice: str) -> str:
    return PurePosixPath(_whole(choice)).stem


def rows_of(mentions: Iterable[Mention], choices: Sequence[str]) -> tuple[list[StackRow], list[str]]:
    """(rows, sentences about names that no file has)."""
    rows, unknown = [], []
    for mention in mentions:
        file = resolve(mention.name, choices)
        if file is None:
            stems = {_alike(_stem(choice)): 0 for choice in choices}
            near = difflib.get_close_matches(_alike(mention.name), stems, 3)
            hint = f" Did you mean {', '.join(near)}?" if near else ""
            unknown.append(f"There is no LoRA {shown(mention.name.strip())} in the loras folders.{hint}")
            continue
        if mention.blocks and not _fits_any(mention.blocks):
            parse_block_weights(mention.blocks)
        rows.append(StackRow(lora=file, model=mention.model, text=mention.text, blocks=mention.blocks))
    return rows, unknown


def _fits_any(blocks: str) -> bool:
    """Whether block weights can be read for some family; which one the model is shows when they are applied."""
    try:
        parse_block_weights(blocks)
    except UserError:
        return False
    return True


# ---- keywords ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Keyword:
    """Words that call up a LoRA, by a name for `resolve`; strengths of None are the node's."""

    name: str
    words: tuple[str, ...]
    model: float | None = None
    text: float | None = None


def parse_keyword_map(text: str) -> list[Keyword]:
    """Read `{"name": ["word", …]}`, `{"name": "word, word"}` or `{"name": {"words": […], "model": 0.8, "text": 0.6}}`.

    Raises UserError.
    """
    if not text.strip():
        return []
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError('keyword_map is not a JSON object. Write for example {"my_lora": ["ohwx", "ink drawing"]}.')
    return [_keyword(name, value) for name, value in content.items()]


def _keyword(name: str, value: Any) -> Keyword:
    fields: Mapping = value if isinstance(value, dict) else {"words": value}
    words, strengths = fields.get("words"), [fields.get("model"), fields.get("text")]
    words = words.split(",") if isinstance(words, str) else words
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"keyword_map gives {shown(name)} no words. Write a list of words, or an object with words, model "
                        "and text.")
    if not all(number is None or (isinstance(number, (int, float)) and abs(number) <= LIMIT) for number in strengths):
        raise UserError(f"keyword_map gives {shown(name)} a strength that is no number from -{LIMIT:g} to {LIMIT:g}.")
    return Keyword(name, tuple(word.strip() for word in words if word.strip()), *strengths)
