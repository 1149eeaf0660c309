"""LoRA stacks without ComfyUI: rows as data, block weights, names of weights, prompts, files.

`nodes/host/stack.py` applies what is described here to the host's models.
"""
from .. import families as families  # they make the names of their layers known
from .rows import LoraEntry, StackRow, entries_from, parse_rows, serialize_rows

__all__ = ["LoraEntry", "StackRow", "entries_from", "parse_rows", "serialize_rows"]
