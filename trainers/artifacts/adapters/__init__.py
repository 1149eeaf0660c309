"""The registry of what files store for adapted layers: one file for each kind. A new kind is a file and a line here; its
other half, how peft puts it beside a layer, is in methods/adapters/."""
from collections.abc import Collection

from ..layer_names import parts as names
from .difference import DifferenceFormat
from .dora import DoraFormat
from .format import AdapterFormat
from .loha import LohaFormat
from .lokr import LokrFormat
from .lora import LoraFormat

FORMATS: dict[str, AdapterFormat] = {}
"""By the name of the kind. The first that holds a layer's tensors reads it."""


def register(kind: str, format: AdapterFormat):
    FORMATS[kind] = format
    names.keep(*format.parts)


def format_of(parts: Collection[str]) -> AdapterFormat | None:
    """The kind of a layer that has these tensors."""
    return next((format for format in FORMATS.values() if format.holds(parts)), None)


register("difference", DifferenceFormat())
register("dora", DoraFormat())
register("lora", LoraFormat())
register("loha", LohaFormat())
register("lokr", LokrFormat())
