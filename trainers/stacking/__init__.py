"""LoRA stacks without ComfyUI: rows as data, block weights, names of weights, prompts, files.

`nodes/host/stack.py` applies what is described here to the host's models.
"""
from .rows import LoraEntry, StackRow, entries_from, parse_rows, serialize_rows

__all__ = ["LoraEntry", "StackRow", "entries_from", "parse_rows", "serialize_rows"]
