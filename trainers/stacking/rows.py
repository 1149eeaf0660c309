"""The rows of a LoRA stack as the data that workflows carry, and the entries that leave the node.

The widget `rows` of LoRA Stack holds JSON text; the editor draws itself over it and writes nothing else:

    {"version": 1, "rows": [
      {"on": true, "lora": "styles/ink.safetensors", "hash": "9f2c…", "bytes": 37861672, "model": 0.8, "text": 0.6,
       "blocks": "OUTD, IN04=0.3", "attention": 1.0, "feed_forward": 1.0, "convolution": 0.0}, …]}

- `on`: whether the row takes part. Default true.
- `lora`: name relative to ComfyUI's loras folders, with "/" or "\\"; "" or "None" is an empty row.
- `hash`: 64 hex digits, SHA-256 of the file's tensor data (everything behind the safetensors header, as `sshs_model_hash`),
  or of the whole file, as download sites show it; "" when unknown. By it a renamed file is found.
- `bytes`: size of that tensor data, which spares hashing files of another size; 0 when unknown.
- `model`, `text`: strengths of the denoiser and the text encoders, -100 to 100. Default 1; `text` defaults to `model`.
- `blocks`: block weights as text (block_weights.py), "" for 1 everywhere.
- `attention`, `feed_forward`, `convolution`: factors for weights of that kind, -100 to 100, default 1.

Whatever is left out has its default; a bare list of rows is read too. Rows are applied from the first to the last.
A weight's strength is (model or text) × block weight × factor of its kind.
"""
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from ..artifacts.layer_names import in_denoiser, place
from ..artifacts.layer_names.blocks import ATTENTION, BASE, CONVOLUTION, FEED_FORWARD
from ..errors import UserError
from ..spec.part import Part, checked
from .block_weights import LIMIT, parse_block_weights

VERSION = 1
MAXIMUM_ROWS = 1000
Strength = Field(default=1.0, ge=-LIMIT, le=LIMIT)


class StackRow(Part):
    on: bool = True
    lora: str = Field(default="", max_length=4096)
    hash: str = ""
    bytes: int = Field(default=0, ge=0)
    model: float = Strength
    text: float = Strength
    blocks: str = Field(default="", max_length=10_000)
    attention: float = Strength
    feed_forward: float = Strength
    convolution: float = Strength

    @model_validator(mode="before")
    @classmethod
    def _text_follows_model(cls, fields: Any):
        if isinstance(fields, dict) and fields.get("text") is None and "model" in fields:
            return {**fields, "text": fields["model"]}
        return fields

    @field_validator("hash")
    @classmethod
    def _hash_is_sha256(cls, digest: str):
        digest = digest.lower().removeprefix("0x")
        if not re.fullmatch("([0-9a-f]{64})?", digest):
            raise ValueError("the hash of a LoRA has 64 hexadecimal digits")
        return digest

    @property
    def empty(self) -> bool:
        """Whether the row has no effect: off, without a file, or with strengths of 0."""
        return not self.on or self.lora in ("", "None") or (self.model == 0 and self.text == 0)

    @property
    def plain(self) -> bool:
        """Whether the two strengths say all: no block weights, no factors."""
        return not self.blocks.strip() and self.attention == self.feed_forward == self.convolution == 1


class LoraEntry(tuple):
    """(name, model strength, text strength): what every node with a LORA_STACK unpacks. The row rides along as `row`.

    Equal to the plain tuple. Copies keep the row; a slice or a sum of tuples does not.
    """

    row: StackRow

    def __new__(cls, name: str, model: float = 1.0, text: float = 1.0, row: StackRow | None = None):
        entry = super().__new__(cls, (name, model, text))
        entry.row = row or StackRow(lora=name, model=model, text=text)
        return entry

    def __getnewargs__(self):
        return (*self, self.row)

    def strengths(self, family: str):
        """A function from a weight's native name to its strength, for a model of `family`. Raises UserError."""
        blocks = parse_block_weights(self.row.blocks, family)
        kinds = {ATTENTION: self.row.attention, FEED_FORWARD: self.row.feed_forward, CONVOLUTION: self.row.convolution}
        _, model, text = self

        def strength(weight: str) -> float:
            block, kind = place(weight, family)
            factor = kinds.get(kind, 1.0)
            return model * blocks[block] * factor if in_denoiser(weight) else text * blocks[BASE] * factor

        return strength


def parse_rows(text: str) -> tuple[StackRow, ...]:
    """Read the widget's text; empty text is no rows. Raises UserError that names the row and the field."""
    if not text.strip():
        return ()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError("rows is not JSON text. Use the stack editor, or write for example "
                        '[{"lora": "name.safetensors", "model": 0.8}].') from None
    if isinstance(content, Mapping):
        if content.get("version", VERSION) != VERSION:
            raise UserError(f"rows is of version {content['version']!r}, which this pack does not know. Update the pack.")
        content = content.get("rows")
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError('rows must be a list of rows, for example [{"lora": "name.safetensors", "model": 0.8}].')
    if len(content) > MAXIMUM_ROWS:
        raise UserError(f"rows has {len(content)} rows; {MAXIMUM_ROWS} is the most.")
    return tuple(_row(number, fields) for number, fields in enumerate(content, 1))


def _row(number: int, fields: dict) -> StackRow:
    try:
        return checked(StackRow, **{str(name): value for name, value in fields.items()})
    except UserError as problem:
        raise UserError(f"Row {number} of rows: {str(problem)[:500]}") from None


def serialize_rows(rows: Iterable[StackRow]) -> str:
    """The widget's text for these rows: `parse_rows` gives them back."""
    return json.dumps({"version": VERSION, "rows": [row.model_dump() for row in rows]}, ensure_ascii=False)


def entries_from(stack: Iterable | None) -> list[LoraEntry]:
    """Any pack's LORA_STACK as entries: tuples or lists of three, or of more, whose rest is not read; entries that are
    called "None" or are empty are dropped. Raises UserError for anything else."""
    entries = []
    for item in stack or ():
        if isinstance(item, LoraEntry):
            entries.append(item)
            continue
        try:
            name, model, text = tuple(item)[:3]
            entry = LoraEntry(str(name), float(model), float(text), checked(
                StackRow, lora=str(name), model=float(model), text=float(text)))
        except (TypeError, ValueError):
            raise UserError("The connected lora_stack holds something other than (name, model strength, text strength). "
                            "Connect a node that gives a LORA_STACK.") from None
        if name not in (None, "", "None"):
            entries.append(entry)
    return entries
