"""Widgets made from the fields of a spec: range, choices, default and step stand there and nowhere else; and the schema of a
node with its search words."""
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from comfy_api.latest import io

from ..trainers.spec import Part


class Schema(io.Schema):
    """A node's schema. `search_aliases` are other words by which people look for it; the host's own argument of that name is
    newer than the oldest host, which passes over it."""

    def __init__(self, *, search_aliases: tuple[str, ...] = (), **fields):
        super().__init__(**fields)
        self.search_aliases = list(search_aliases)


def advanced(widget):
    """Mark a widget as advanced. The keyword for it is newer than the oldest host; this entry is read by all."""
    widget.extra_dict["advanced"] = True
    return widget


def fields_of(widgets: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Widgets by the names of their fields; `names` has those that differ. One that a prompt leaves out keeps the field's
    default."""
    return {names.get(name, name): value for name, value in widgets.items()}


def widget(part: type[Part], field: str, *, tooltip: str, name: str = "", default: Any = None, step: Any = None,
           lowest: float | None = None, expert: bool = False, preset: bool = False, multiline: bool = False):
    """The widget of a field of `part`, called `name` if not like the field.

    `default`, `step` and `lowest` replace the field's own where a node needs others. An `expert` widget is advanced, and
    prompts may leave it out. A `preset` widget is not read while a preset is on.
    """
    info, name = part.model_fields[field], name or field
    default = info.default if default is None else default
    common = {"tooltip": tooltip, "optional": expert}
    extra: dict[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    options = get_args(info.annotation) if get_origin(info.annotation) is Literal else extra.get("options")
    if info.annotation is bool:
        made = io.Boolean.Input(name, default=default, **common)
    elif options:
        made = io.Combo.Input(name, options=list(options), default=default, **common)
    elif info.annotation in (int, float):
        limits = {key: getattr(rule, key) for rule in info.metadata for key in ("ge", "le") if hasattr(rule, key)}
        low, high = info.annotation(limits["ge"] if lowest is None else lowest), info.annotation(limits["le"])
        made = (io.Int if info.annotation is int else io.Float).Input(
            name, default=default, min=low, max=high, step=step or extra.get("step", 1), **common)
    else:  # text, or what the spec reads from text
        made = io.String.Input(name, default=default or "", multiline=multiline, **common)
    if preset:
        made.extra_dict["finetune_preset"] = True
    return advanced(made) if expert else made
