"""Names of tensors in LoRA files of every maker: which layer, which part of it, and alphas kept outside the tensors.

Sources of the names: kohya's sd-scripts, LyCORIS, diffusers and peft, OneTrainer, SimpleTuner, ComfyUI's own SaveLoRA.
"""
import json
import re
from functools import lru_cache
from typing import Mapping, NamedTuple

from torch import Tensor

_FACTORS = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<kohya>down|up|mid)(?:\.weight)?"
    r"|\.lora_(?P<peft>A|B)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
    r"|[._]lora(?:_linear_layer)?\.(?P<old>down|up)(?:\.weight)?"
    r"|\.(?:lora_)?magnitude(?:_vector)?(?P<dora>)(?:\.[^.]+)*"
    r")"
)
"""Low-rank factors and DoRA's magnitudes as kohya, peft (with an adapter's name or without) and old diffusers write them."""
_PARTS = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "A": "lora_down.weight",
          "B": "lora_up.weight"}
KEPT_PARTS = (
    "alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight", "rescale", "oft_blocks",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_w1_a",
    "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "a1.weight", "a2.weight", "b1.weight", "b2.weight",
)
"""Tensors that ComfyUI's adapters read by these names."""


class Part(NamedTuple):
    """A tensor of a file: the layer as the file calls it, and which part of it, by ComfyUI's name for that part."""

    layer: str
    part: str


@lru_cache(maxsize=1 << 16)  # the files of a stack have the same keys
def split_key(key: str) -> Part | None:
    """Layer and part of a tensor's name; None for what no LoRA reader knows."""
    for part in KEPT_PARTS:
        if key.endswith("." + part):
            return Part(key[:-len(part) - 1], part)
    match = _FACTORS.fullmatch(key)
    if match is None:
        return None
    name = match["kohya"] or match["peft"] or match["old"]
    return Part(match["layer"], _PARTS[name] if name else "dora_scale")


def alphas_of_metadata(metadata: Mapping[str, str], ranks: Mapping[str, int],
                       beside: Mapping | None = None) -> dict[str, float]:
    """Layer → the alpha that, divided by the rank, is the scale of training, from what peft keeps outside the tensors.

    diffusers writes JSON under `lora_adapter_metadata`, with the model's part in front of each field ("unet.lora_alpha");
    peft alone writes a file adapter_config.json beside its own, whose content is `beside`. `ranks` has the low-rank layers
    without an alpha tensor. rsLoRA (Kalajdzievski 2023) divides alpha by the rank's root instead of the rank.
    """
    config = _json(metadata.get("lora_adapter_metadata")) or _json(metadata.get("adapter_config")) or beside or {}
    found = {}
    for layer, rank in ranks.items() if config else ():
        part, _, module = layer.partition(".")
        fields = {name.removeprefix(f"{part}."): value for name, value in config.items() if name.startswith(f"{part}.")}
        if not fields:
            fields, module = config, layer
        module = module.removeprefix("base_model.model.")
        pattern = fields.get("alpha_pattern") or {}
        alpha = next((value for name, value in pattern.items() if _names(name, module)), fields.get("lora_alpha"))
        if isinstance(alpha, (int, float)):
            found[layer] = alpha * rank**0.5 if fields.get("use_rslora") else float(alpha)
    return found


def _names(pattern: str, module: str) -> bool:
    """peft's rule: a pattern names the modules that end in it, at a dot."""
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return pattern == module


def _json(text: str | None) -> dict:
    try:
        content = json.loads(text) if text else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def dora_scale(vector: Tensor, up: Tensor, dimensions: int) -> Tensor:
    """DoRA's magnitudes with all dimensions: peft's flat [out] becomes [out, 1, …]."""
    return vector.reshape(-1, *[1] * (dimensions - 1)) if vector.ndim == 1 and len(vector) == len(up) else vector
