"""Quantized weights as the numbers that they stand for: a file for each layout, and the registry of all of them.

Sources: ComfyUI's `comfy/quant_ops.py` and `comfy/ops.py` (names, notes), its comfy-kitchen (numbers), and
`comfy.utils.convert_old_quants` (older names). Other layouts are refused, because weights without their scales are noise.
"""
import re
from collections.abc import Callable, Mapping

from ..tensor_files import Entry
from . import mxfp8, nvfp4, scaled
from .layout import StoredWeight, refusal
from .notes import NOTE, notes_of

LAYOUTS: dict[str, Callable[[StoredWeight], Entry]] = {
    "float8_e4m3fn": scaled.read, "float8_e5m2": scaled.read, "int8_tensorwise": scaled.read, "mxfp8": mxfp8.read,
    "nvfp4": nvfp4.read,
}
"""Value of `format` in a layer's note → how its weight is read."""
NEWER = {"weight_scale": "weight_scale", "scale_weight": "weight_scale", "weight_scale_2": "weight_scale_2"}
"""What stands for `weight` in the names of tensors with a weight's scales → the newer name of the same."""
BESIDE = re.compile(rf"(.+\.)?(scaled_fp8|{NOTE}|scale_input|input_scale)")
"""Markers, and scales of what goes into a layer, which only matter to programs that compute in eight bits."""
OTHERS = re.compile(r"(.+\.)?weight(_scale_2|_scale_inv|_s_rel|_s_channel|_codebook|\.absmax|\.quant_map|\.nested_.+|"
                    r"\.quant_state\..+|_packed|_zero_point|_shape)|(.+\.)?(pre_quant_scale|qweight|qzeros)")
"""Parts of layouts that are not read (DeepSeek's fp8, bitsandbytes, GPTQ, …), where none that is read takes them."""


def without_scales(entries: Mapping[str, Entry], metadata: Mapping[str, str], title: str) -> dict[str, Entry]:
    """The same tensors with every quantized weight as its numbers, in float32, and without scales and notes.

    Raises UserError for a layout that is not understood. Weights are read when their turn comes.
    """
    notes = notes_of(entries, metadata, title)
    for note in notes.values():
        if str(note.get("format")) not in LAYOUTS:
            raise refusal(title, str(note.get("format"))[:100])
    read, taken = {}, set()
    for name, entry in entries.items():
        beside = _beside(name, entries)
        note = notes.get(name.removesuffix("weight").removesuffix("."), {})
        if beside or (note and name.endswith("weight")):
            stored = StoredWeight(title, entry, {NEWER[part]: entries[scale] for part, scale in beside.items()}, note)
            if 0 in entry.shape:
                raise stored.refused()
            read[name] = LAYOUTS[note.get("format", "float8_e4m3fn")](stored)
            taken |= {scale for part, scale in beside.items() if part != "weight_scale_2" or note.get("format") == "nvfp4"}
    other = next((name for name in entries if OTHERS.fullmatch(name) and name not in taken), None)
    if other is not None:
        raise refusal(title, other[:100])
    return {name: read.get(name, entry) for name, entry in entries.items()
            if name not in taken and not BESIDE.fullmatch(name)}


def _beside(name: str, entries: Mapping[str, Entry]) -> dict[str, str]:
    """The tensors with scales of a weight, by what stands for "weight" in their names."""
    stem = name.removesuffix("weight")
    if stem == name or name.endswith("scale_weight"):
        return {}
    return {part: stem + part for part in NEWER if stem + part in entries}


__all__ = ["LAYOUTS", "without_scales"]
