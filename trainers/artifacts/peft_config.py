"""The scale of layers whose file has no alpha tensors: peft keeps alpha in its configuration.

diffusers writes that as JSON into the header under `lora_adapter_metadata`, with the model's part in front of each field
("unet.lora_alpha"); peft alone writes a file adapter_config.json beside its own. Whoever wrote them may be anybody: what is
no sensible number is left out, and said.
"""
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from .layer_names.spelling import is_text

FILE = "adapter_config.json"
LARGEST_FILE = 16_000_000
"""Bytes; a configuration with patterns for every layer of the largest models has less than one million."""
LARGEST_ALPHA, LARGEST_RANK = 1e6, 1 << 20
MOST_PATTERNS = 10_000
_PEFT = "base_model.model."
_SPECIAL = re.compile(r"[*+?{}\[\]|()\\^$]")
_COSTLY = re.compile(r"\)[*+?{]|([*+{].*){3}")
"""Repeated groups, and many repetitions one after the other."""


@dataclass(frozen=True)
class PeftConfig:
    """A file's configuration; empty where there is none."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What of it is not to be understood, in words."""

    def scale(self, layer: str, rank: int | None) -> float | None:
        """What peft multiplies the product of a layer's factors with; None where nothing is said. `rank` is that of the
        factors, None for a full LoKr.

        alpha / rank, or with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) alpha / √rank. LoHa and LoKr call alpha "alpha".
        """
        fields, module = _of_component(self.fields, layer)
        alpha = _number(_matching(fields.get("alpha_pattern"), module, fields.get("lora_alpha", fields.get("alpha"))))
        rank = rank or _rank(_matching(fields.get("rank_pattern"), module, fields.get("r")))
        if alpha is None or not rank:
            return None
        return alpha / (rank**0.5 if fields.get("use_rslora") is True else rank)


def read_peft_config(path: Path, metadata: Mapping[str, str], keys: Iterable[str]) -> PeftConfig:
    """The configuration of the file at `path` with these tensors. What lies beside it counts for files that peft wrote:
    by its own name, or with its own names of layers."""
    for name in ("lora_adapter_metadata", "adapter_config"):
        text = metadata.get(name)
        if text:
            return _checked(_parsed(text), f"{name} in its metadata")
    beside = path.with_name(FILE)
    if not path.name.startswith("adapter_model") and not any(_PEFT in key for key in keys):
        return PeftConfig()
    try:
        if not beside.is_file():
            return PeftConfig()
        text = beside.read_text(encoding="utf-8") if beside.stat().st_size <= LARGEST_FILE else ""
    except (OSError, ValueError):
        text = ""
    return _checked(_parsed(text), f"the {FILE} beside it")


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _checked(content: Any, source: str) -> PeftConfig:
    if not isinstance(content, dict):
        return PeftConfig({}, (f"{source} cannot be read, so every layer without an alpha of its own has the scale 1",))
    wrong = []
    for name, value in content.items():
        last = name.rpartition(".")[2]
        if (last in ("lora_alpha", "alpha") and _number(value) is None) or (last == "r" and _rank(value) is None):
            wrong.append(name)
        elif last in ("alpha_pattern", "rank_pattern") and value is not None:
            check = _number if last == "alpha_pattern" else _rank
            if not isinstance(value, dict) or any(check(number) is None for number in value.values()):
                wrong.append(name)
    names = ", ".join(name[:60] for name in wrong[:3])
    note = f"{source} says nothing usable for {names}, so layers that need it have the scale 1"
    return PeftConfig(content, (note,) if wrong else ())


def _of_component(fields: Mapping[str, Any], layer: str) -> tuple[Mapping[str, Any], str]:
    """(the fields that count for a layer, its name within its part of the model)"""
    part, _, rest = layer.partition(".")
    components = {name.partition(".")[0] for name in fields if "." in name}
    if part not in components:
        if not components or "lora_alpha" in fields or "alpha" in fields:
            return fields, layer.removeprefix(f"{part}.{_PEFT}").removeprefix(_PEFT)
        # Names without the part of the model: the denoiser's, or those of the only text encoder.
        text = {name for name in components if name.startswith("text")}
        candidates, rest = sorted(text if is_text(layer) else components - text), layer
        part = candidates[0] if len(candidates) == 1 else ""
    own = {name.removeprefix(f"{part}."): value for name, value in fields.items() if name.startswith(f"{part}.")}
    return own, rest.removeprefix(_PEFT)


def _matching(patterns: Any, module: str, default: Any) -> Any:
    """peft's rule: the first pattern that names the module or ends it, at a dot."""
    if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS:
        return default
    return next((value for name, value in patterns.items() if _names(name, module)), default)


def _names(pattern: str, module: str) -> bool:
    if module == pattern or module.endswith(f".{pattern}"):
        return True
    # Patterns are regular expressions; those that could take for ever are not tried.
    if not _SPECIAL.search(pattern) or len(pattern) > 300 or _COSTLY.search(pattern):
        return False
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except (re.error, RecursionError, OverflowError):
        return False


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_ALPHA:
        return None
    return float(value) if isfinite(value) else None


def _rank(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == int(number) and 1 <= number <= LARGEST_RANK else None
