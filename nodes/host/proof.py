"""Proof that a finished file loads: the host's own loaders are asked, without weights where that is possible."""
from pathlib import Path

import comfy.lora
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import torch
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

from .native import host_model, host_text_options


def unmatched_keys(lora: dict, family: str, unet_config: dict, text_config: dict) -> list[str]:
    """Keys of a LoRA that the host would leave unloaded for a base with these diffusers and transformers configs.

    The host's own model classes are built on the meta device (names and shapes, no memory) and its own loader is asked.
    """
    _, denoiser = host_model(unet_config, family, {}, device="meta")
    key_map = comfy.lora.model_lora_keys_unet(denoiser, {})
    if any(key.startswith("lora_te") for key in lora):
        text_classes = {
            "sd1": comfy.sd1_clip.SD1ClipModel, "sd2": comfy.text_encoders.sd2_clip.SD2ClipModel,
            "sdxl": comfy.sdxl_clip.SDXLClipModel,
        }
        options = host_text_options(text_config) if family == "sd1" else {}
        text = text_classes[family](device="meta", dtype=torch.float32, model_options=options)
        key_map = comfy.lora.model_lora_keys_clip(text, key_map)
    patches = comfy.lora.load_lora(dict(lora), key_map, log_missing=False)
    # An adapter remembers every key that the host has taken up to it.
    loaded = set().union(*(patch.loaded_keys for patch in patches.values()))
    return sorted(set(lora) - loaded)


def unloaded_widths(hypernetwork: Path, widths: list[int]) -> list[str]:
    """Those of a hypernetwork file's widths that the host would not act on. It refuses a file with no more than a line in
    its log, so it is asked for the patch that HypernetworkLoader would set."""
    patch = load_hypernetwork_patch(str(hypernetwork), 1.0)
    loaded = patch.hypernet if patch else {}
    return [f"width {width}" for width in widths if len(loaded.get(width, ())) != 2]
