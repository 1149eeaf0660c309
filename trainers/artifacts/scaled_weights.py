"""Weights that a file keeps in eight bits beside a scale, as a file without scales has them.

Sources of the names: ComfyUI's `comfy.utils.convert_old_quants` and `comfy.quant_ops` ("scaled fp8": `scale_weight` with the
marker `scaled_fp8`; newer: `weight_scale` with `comfy_quant`). Scales are read that are one number for a weight, or one for
each of its rows; every other layout is refused, because its weights without their scales are noise.
"""
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..errors import UserError
from .tensor_files import Entry

SCALES = ("scale_weight", "weight_scale")
"""What stands for `weight` in the name of the tensor with a weight's scale."""
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
"""Values of `format` in a layer's `comfy_quant` that mean: weight = stored · scale."""
BESIDE = re.compile(r"(.+\.)?(scaled_fp8|comfy_quant|scale_input|input_scale)")
"""Markers, and scales of what goes into a layer, which only matter to programs that compute in eight bits."""
OTHERS = re.compile(r"(.+\.)?weight(_scale_2|_scale_inv|_s_rel|_s_channel|_codebook|\.absmax|\.quant_map|\.nested_.+|"
                    r"\.quant_state\..+|_packed|_zero_point|_shape)|(.+\.)?(pre_quant_scale|qweight|qzeros)")
"""Parts of layouts with a scale for each block of a weight, or with several values in a byte (NVFP4, DeepSeek's fp8,
bitsandbytes, GPTQ, …)."""
LONGEST_NOTE = 10_000
"""Bytes of a layer's `comfy_quant`, which is JSON."""


def without_scales(entries: Mapping[str, Entry], metadata: Mapping[str, str], title: str) -> dict[str, Entry]:
    """The same tensors with every scale worked into its weight, in float32, and without scales and their markers.

    Raises UserError for a layout that is not understood. Weights are read when their turn comes.
    """
    _refuse_other_layouts(entries, metadata, title)
    scales = {name: scale for name in entries for scale in _scale_names(name) if scale in entries}
    beside = {name for name in entries if BESIDE.fullmatch(name)}
    return {name: _scaled(entry, entries[scales[name]], title) if name in scales else entry
            for name, entry in entries.items() if name not in beside and name not in scales.values()}


def is_scaled(entries: Mapping[str, Entry]) -> bool:
    """Whether `without_scales` has worked a scale into one of them."""
    return any(entry.stored is not None for entry in entries.values())


def _scale_names(name: str) -> list[str]:
    stem = name.removesuffix("weight")
    return [stem + scale for scale in SCALES] if name.endswith("weight") and not name.endswith(SCALES) else []


def _scaled(entry: Entry, scale: Entry, title: str) -> Entry:
    rows = entry.shape[:1]
    numbers = prod(scale.shape)
    if (numbers != 1 and (scale.shape[:1] != rows or numbers != rows[0])) or not _is_number(scale) or not _is_value(entry):
        raise UserError(f"{title!r} keeps {entry.name} {list(entry.shape)} in {_words(entry)} with scales "
                        f"{list(scale.shape)} in {_words(scale)}, a layout that is not read: one number for a weight or for "
                        "each of its rows is. Choose the fp16 or bf16 version of this model.")

    def factor() -> Tensor:
        return scale.tensor().to(torch.float32).reshape(-1, *[1] * (len(entry.shape) - 1))

    def pieces():
        return [entry.tensor().to(torch.float32).mul_(factor())]
    return replace(entry, dtype=torch.float32, stored=entry.dtype, scale=factor, pieces=pieces)


def _is_number(scale: Entry) -> bool:
    return scale.dtype.is_floating_point and scale.dtype.itemsize > 1


def _is_value(entry: Entry) -> bool:
    """Bytes without a sign are several values packed together."""
    return entry.dtype.is_floating_point or entry.dtype == torch.int8


def _words(entry: Entry) -> str:
    return str(entry.dtype).removeprefix("torch.")


def _refuse_other_layouts(entries: Mapping[str, Entry], metadata: Mapping[str, str], title: str):
    notes = [_content(entry.tensor().numpy().tobytes()) for name, entry in entries.items()
             if name.endswith("comfy_quant") and entry.bytes <= LONGEST_NOTE and entry.dtype == torch.uint8]
    layers = _content(metadata.get("_quantization_metadata", "")).get("layers")
    notes += [note for note in (layers.values() if isinstance(layers, dict) else ()) if isinstance(note, dict)]
    parts = next((name for name in entries if OTHERS.fullmatch(name)), None)
    formats = [str(note.get("format")) + " with rotated weights" * _is_rotated(note) for note in notes]
    other = next((found for found in formats if found not in FORMATS), parts)
    if other is not None:
        raise UserError(f"{title!r} keeps its weights in a layout that is not read ({other[:100]}): they have scales for "
                        "blocks, or several values in a byte. Choose the fp16 or bf16 version of this model.")


def _is_rotated(note: dict) -> bool:
    inner = note.get("params")
    return any(bool(each.get("convrot")) for each in (note, inner) if isinstance(each, dict))


def _content(text: str | bytes) -> dict:
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
