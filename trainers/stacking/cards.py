"""What a LoRA file tells about itself, from its header alone, as plain short text: nobody knows who wrote it."""
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..artifacts.adapters import FORMATS, format_of
from ..artifacts.layer_names import family_of_lora, place, split_key
from ..artifacts.tensor_header import MAXIMUM_HEADER, data_start, read_header

LONGEST, LONGEST_NAME, MOST_ENTRIES = 2000, 200, 200
LARGEST_JSON = 20_000_000
"""Characters; the tags of 100,000 captions have about a tenth."""
MOST_COUNTED = 10**9
OTHERS = {"oft_blocks": "OFT", "a1.weight": "GLoRA"}
"""Kinds that are not read here, by one of their tensors."""


def plain(text: object, length: int = LONGEST) -> str:
    """Text of unknown origin as one short line: control and formatting characters become spaces."""
    raw = str(text)[:4 * length]
    line = " ".join("".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in raw).split())
    return line if len(line) <= length and len(str(text)) <= 4 * length else line[:length] + "…"


def card(path: Path, name: str) -> dict:
    """Facts for people about a .safetensors file: strings, numbers and lists of strings only. Raises UserError when the file
    is damaged.

    {"name", "bytes", "data_bytes", "hash" (as the file states it, else ""), "family", "base_model", "method", "rank",
    "alpha", "layers", "keys", "triggers", "tags", "title", "author", "description", "metadata"}
    """
    tensors, metadata = read_header(path)
    metadata = {str(key): str(value) for key, value in metadata.items()}
    ranks = ranks_of(tensors)
    return {
        "name": plain(name, LONGEST_NAME), "bytes": path.stat().st_size, "data_bytes": data_bytes(path),
        "hash": stated_hash(metadata), "family": family_of(tensors, metadata),
        "base_model": plain(metadata.get("ss_sd_model_name") or metadata.get("modelspec.base_model")
                            or metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture", ""), 200),
        "method": method_of(tensors), "rank": ranks.most_common(1)[0][0] if ranks else 0,
        "alpha": number_of(metadata.get("ss_network_alpha", "")),
        "layers": len({split.layer for key in tensors if (split := split_key(key))}), "keys": len(tensors),
        "triggers": [plain(word, 200) for word in triggers_of(metadata)][:20], "tags": tags_of(metadata),
        "title": plain(metadata.get("modelspec.title") or metadata.get("ss_output_name", ""), 200),
        "author": plain(metadata.get("modelspec.author", ""), 200),
        "description": plain(metadata.get("modelspec.description", "")),
        "metadata": {plain(key, 100): plain(value) for key, value in sorted(metadata.items())[:MOST_ENTRIES]
                     if key != "modelspec.thumbnail"},
    }


def ranks_of(tensors: Mapping[str, dict]) -> Counter:
    """How many layers have which rank, by the shapes of a header's tensors."""
    ranks: Counter[int] = Counter()
    ranked = {format.ranked[0] for format in FORMATS.values() if format.ranked}
    for key, entry in tensors.items():
        split = split_key(key)
        if split and split.part in ranked and entry["shape"]:
            ranks[entry["shape"][0]] += 1
    return ranks


def method_of(tensors: Mapping[str, dict]) -> str:
    parts = {split.part for key in tensors if (split := split_key(key))}
    other = next((title for part, title in OTHERS.items() if part in parts), None)
    kind = format_of(parts)
    return other or (kind.title if kind else "unknown")


def family_of(tensors: Mapping[str, dict], metadata: Mapping[str, str]) -> str:
    """`family_of_lora` for the tensors of a header."""
    return family_of_lora({key: tuple(entry["shape"]) for key, entry in tensors.items()}, metadata)


def triggers_of(metadata: Mapping[str, str]) -> list[str]:
    """Words that call a LoRA up: modelspec's trigger phrase and the class tokens of kohya's datasets."""
    phrases = [metadata.get("modelspec.trigger_phrase", "")]
    for dataset in _json(metadata.get("ss_datasets"), list):
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        phrases += [subset.get("class_tokens") for subset in subsets if isinstance(subset, dict)] if isinstance(
            subsets, list) else []
    words = [word for phrase in phrases if isinstance(phrase, str) for word in phrase[:10 * LONGEST].split(",")]
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))


def tags_of(metadata: Mapping[str, str], count: int = 20) -> list[str]:
    """The most frequent tags of the captions that a LoRA was trained with."""
    totals: Counter[str] = Counter()
    for tags in _json(metadata.get("ss_tag_frequency"), dict).values():
        for tag, number in (tags.items() if isinstance(tags, dict) else ()):
            if isinstance(number, (int, float)) and number > 0:  # NaN is not above 0
                totals[tag] += int(min(number, MOST_COUNTED))
    shown = (plain(tag, 100) for tag, _ in totals.most_common(2 * count))
    return list(dict.fromkeys(tag for tag in shown if tag))[:count]


def number_of(text: str) -> str:
    """A number as metadata writes it; "" for what is none, and for what is not finite."""
    try:
        return plain(text, 20) if math.isfinite(float(text)) else ""
    except (ValueError, OverflowError):
        return ""


def _json(text: str | None, kind: type):
    try:
        content = json.loads(text) if text and len(text) <= LARGEST_JSON else kind()
    except (ValueError, RecursionError):
        return kind()
    return content if isinstance(content, kind) else kind()


def block_names(tensors: Mapping[str, dict], family: str) -> set[str]:
    return {place(split.layer, family).block for key in tensors if (split := split_key(key))}


def stated_hash(metadata: Mapping[str, str]) -> str:
    """The hash over the tensor data as the header states it, 64 hex digits or ""."""
    stated = metadata.get("sshs_model_hash") or metadata.get("modelspec.hash_sha256", "")
    stated = stated.lower().removeprefix("0x")
    return stated if re.fullmatch("[0-9a-f]{64}", stated) else ""


def data_bytes(path: Path) -> int:
    """Size of the tensor data behind a safetensors header."""
    return path.stat().st_size - data_start(path)


def hashes_of(path: Path, block: int = 1 << 22) -> tuple[str, str]:
    """(SHA-256 of the tensor data, SHA-256 of the whole file), in one pass over the file."""
    whole, data = hashlib.sha256(), hashlib.sha256()
    with open(path, "rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), MAXIMUM_HEADER))
        whole.update(length + header)
        while piece := file.read(block):
            whole.update(piece)
            data.update(piece)
    return data.hexdigest(), whole.hexdigest()
