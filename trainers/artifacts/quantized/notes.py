"""What a file says of the layout of its layers: a tensor beside each weight, or one text in the header for all of them."""
import json
from collections.abc import Mapping
from typing import Any

import torch

from ..tensor_files import Entry
from .layout import refusal

NOTE = "comfy_quant"
"""Last part of the name of the tensor with a layer's note, which is JSON in bytes."""
HEADER = "_quantization_metadata"
LONGEST = 10_000
"""Bytes of a layer's note."""


def notes_of(entries: Mapping[str, Entry], metadata: Mapping[str, str], title: str) -> dict[str, dict[str, Any]]:
    """Layer → its note. Raises UserError for one that cannot be read: what it is about is unknown then."""
    notes = {}
    for name, entry in entries.items():
        if name == NOTE or name.endswith(f".{NOTE}"):
            is_text = entry.dtype == torch.uint8 and entry.bytes <= LONGEST
            note = _content(entry.tensor().numpy().tobytes()) if is_text else {}
            if not note:
                raise refusal(title, f"{name} is no note")
            notes[name.removesuffix(NOTE).removesuffix(".")] = note
    layers = _content(metadata.get(HEADER, "")).get("layers")
    said = layers.items() if isinstance(layers, dict) else ()
    return notes | {name: note for name, note in said if isinstance(note, dict)}


def _content(text: str | bytes) -> dict:
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
