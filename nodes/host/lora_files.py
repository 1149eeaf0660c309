"""LoRA files in the host's folders: found by name or hash, read once, described."""
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ...trainers.artifacts.changes import rank_of
from ...trainers.artifacts.layer_names.parts import ALPHA
from ...trainers.artifacts.peft_config import PeftConfig, read_peft_config
from ...trainers.artifacts.tensor_files import mapped_tensors, require_finite, require_room
from ...trainers.artifacts.tensor_header import read_header
from ...trainers.artifacts.torch_files import Refused, is_dense, load_plain
from ...trainers.errors import UserError
from ...trainers.files import read_json, write_json
from ...trainers.stacking.block_weights import shown
from ...trainers.stacking.cards import card, data_bytes, hashes_of, stated_hash
from ...trainers.stacking.rows import StackRow
from ...trainers.words import printable
from .folders import output_folder

CACHE_BYTES = 4 * 2**30
"""Tensors of LoRA files that are kept for the next run. They are mapped from disk, so that the system may drop them."""
PREVIEWS = (".png", ".preview.png", ".jpg", ".jpeg", ".preview.jpg", ".webp", ".preview.webp")
_lock, _hash_lock = threading.Lock(), threading.Lock()
_read: OrderedDict[tuple, "LoraFile"] = OrderedDict()
_cards: dict[tuple, dict] = {}


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a file, its header's metadata, and peft's configuration, if it has one."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    peft: PeftConfig

    def scale(self, layer: str, parts: Mapping[str, Tensor]) -> float | None:
        """What the file says outside its tensors of a layer's scale; None where its alpha tensor counts, or nothing."""
        shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        return None if ALPHA in parts else self.peft.scale(layer, rank_of(shapes))


def lora_names() -> list[str]:
    """All LoRA files, relative to the loras folders."""
    return folder_paths.get_filename_list("loras")


def own_name(name: str) -> str | None:
    """A listed LoRA's name as this system writes it, with either slash; None for what is not listed."""
    names, wanted = lora_names(), name.replace("\\", "/")
    return name if name in names else next((own for own in names if own.replace("\\", "/") == wanted), None)


def lora_path(name: str) -> Path | None:
    """Where a LoRA lies, or None. A workflow may name anything, so only what the host lists is looked up."""
    own = own_name(name)
    return _listed_path(own) if own else None


def _listed_path(name: str) -> Path | None:
    path = folder_paths.get_full_path("loras", name)
    return Path(path) if path else None


def _key(path: Path) -> tuple:
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def read_lora(name: str) -> LoraFile:
    """A file's content, from memory when the file did not change. Raises UserError when it is missing or damaged."""
    path = lora_path(name)
    if path is None:
        raise UserError(f"The LoRA {shown(name, 200)} is not in the loras folders. Refresh the node list and choose again.")
    key = _key(path)
    with _lock:
        if key in _read:
            _read.move_to_end(key)
            return _read[key]
    tensors, metadata = _content(path, name)
    file = LoraFile(name, tensors, metadata, read_peft_config(path, metadata, tensors))
    with _lock:
        for old in [old for old in _read if old[0] == key[0]]:
            del _read[old]
        _read[key] = file
        while len(_read) > 1 and sum(old[2] for old in _read) > CACHE_BYTES:
            _read.popitem(last=False)
    return file


def _content(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file. Raises UserError, also for values that are no numbers."""
    free: Any = comfy.model_management.get_free_memory(torch.device("cpu"))  # bytes
    require_room(path, free)
    if path.suffix.lower() in (".safetensors", ".sft"):
        return mapped_tensors(path)
    tensors = _tensors_of_torch_file(path, name)
    return {key: require_finite(tensor, printable(key), path.name).clone() for key, tensor in tensors.items()}, {}


def _tensors_of_torch_file(path: Path, name: str) -> dict[str, Tensor]:
    """The host's rule: the file is a dict of tensors, or holds one under "state_dict" or its only key."""
    try:
        content = load_plain(path)
    except Refused:
        raise UserError(f"The LoRA {shown(name, 200)} cannot be read safely: it is damaged, or holds more than tensors. Use "
                        "a .safetensors version of it.") from None
    content = content if isinstance(content, dict) else {}
    inner = content.get("state_dict", next(iter(content.values())) if len(content) == 1 else None)
    tensors = {str(key): tensor.detach() for key, tensor in (inner if isinstance(inner, dict) else content).items()
               if is_dense(tensor, range(6))}
    if not 0 < sum(tensor.numel() for tensor in tensors.values()) <= path.stat().st_size:  # as views, they could be more
        raise UserError(f"The LoRA {shown(name, 200)} holds no tensors that make one. Choose another file.")
    return tensors


def lora_card(name: str, hashed: bool = True) -> dict:
    """`cards.card` of a LoRA, and "preview": whether an image lies beside it. `hashed`: compute its hash, which reads the
    whole file once. Raises UserError."""
    path = lora_path(name)
    if path is None:
        raise UserError(f"The LoRA {shown(name, 200)} is not in the loras folders.")
    if path.suffix.lower() not in (".safetensors", ".sft"):
        raise UserError(f"{shown(name, 200)} is no .safetensors file; nothing is known about it.")
    key = _key(path)
    if key not in _cards:
        _cards[key] = card(path, name)
    facts = {**_cards[key], "preview": preview_path(name) is not None}
    return {**facts, "hash": lora_hashes(path)[0]} if hashed else facts


def quick_card(name: str) -> dict | None:
    """`cards.card` of a listed LoRA without computing a hash; None when the file is damaged or of another kind."""
    path = _listed_path(name)
    if path is None:
        return None
    try:
        key = _key(path)
        if key not in _cards:
            _cards[key] = card(path, name)
        return _cards[key]
    except Exception:  # whatever is wrong with one file, the others are still looked through
        return None


def preview_path(name: str) -> Path | None:
    """The image beside a LoRA: the same name with an image's suffix."""
    path = lora_path(name)
    if path is None:
        return None
    return next((image for suffix in PREVIEWS if (image := path.with_name(path.stem + suffix)).is_file()), None)


# ---- hashes --------------------------------------------------------------------------------------------------------

def _hash_file() -> Path:
    return output_folder() / ".cache" / "lora_hashes.json"


def lora_hashes(path: Path) -> tuple[str, str]:
    """(hash of the tensor data, hash of the file), computed once per file and kept on disk."""
    key = json.dumps(_key(path))
    with _hash_lock:
        known = read_json(_hash_file())
        known = known if isinstance(known, dict) else {}
        if not isinstance(known.get(key), list) or len(known[key]) != 2:  # unknown, or a damaged file
            known = {old: value for old, value in known.items() if not old.startswith(f"[{json.dumps(str(path))},")}
            known[key] = list(hashes_of(path))
            _hash_file().parent.mkdir(parents=True, exist_ok=True)
            write_json(_hash_file(), known)
        data, file = known[key]
        return data, file


def find_row(row: StackRow) -> tuple[str, str]:
    """(name of the file that a row means, a note about it or ""). Raises UserError when it is nowhere.

    The file under the row's own name, if its hash is the row's or the row has none; else a file with that hash under any
    name; else the file under the name after all, with a note.
    """
    own = own_name(row.lora)
    path = _listed_path(own) if own else None
    if own and path and (not row.hash or row.hash in (_stated(path), *lora_hashes(path))):
        return own, ""
    if row.hash and (found := _find_hash(row)):
        return found, f"{shown(row.lora)} was found as {shown(found)}, by its hash"
    if own and path:
        return own, f"{shown(row.lora)} is not the file that the stack was made with: its hash is another"
    hint = f" with the hash {row.hash[:10]}…" if row.hash else ""
    raise UserError(f"The LoRA {shown(row.lora, 200)}{hint} is missing. Put it into models/loras under any name, "
                    "refresh the node list, and queue again, or switch its row off.")


def _stated(path: Path) -> str:
    try:
        return stated_hash(read_header(path)[1])
    except UserError:
        return ""


def _find_hash(row: StackRow) -> str | None:
    """A file whose header states the hash, else one whose content has it. Only files of the row's size are hashed."""
    candidates = []
    for name in lora_names():
        path = _listed_path(name)
        if path is None or path.suffix.lower() not in (".safetensors", ".sft"):
            continue
        try:
            stated, size = (quick_card(name) or {}).get("hash", ""), data_bytes(path)
        except OSError:
            continue
        if stated == row.hash:
            return name
        if not row.bytes or size == row.bytes:
            candidates.append((bool(stated), name, path))
    # Files that state no hash first: those that state another are rarely the one.
    return next((name for _, name, path in sorted(candidates) if row.hash in lora_hashes(path)), None)


def signature(names: list[str]) -> list:
    """Changes when one of the files does. Names that are not listed count as missing."""
    listed = set(lora_names())
    paths = {name: _listed_path(name) if name in listed else lora_path(name) for name in names}
    return [(name, *_key(path)[1:]) if path and os.path.exists(path) else (name,) for name, path in paths.items()]
