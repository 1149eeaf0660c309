"""Names of layers in LoRA files of every trainer, brought to those that ComfyUI knows.

ComfyUI matches whole names; files that mean the same layer with another spelling are left unloaded there. Sources of the
spellings: kohya's sd-scripts, LyCORIS, diffusers and peft, OneTrainer, SimpleTuner, ComfyUI's own SaveLoRA.
"""
import re
from typing import Iterator

from .blocks import is_text, underscored

_PREFIXES = re.compile(
    r"(?:base_model_model_)?(?:model_)?(?:lora_unet_|lora_transformer_|lycoris_|lora_prior_unet_|unet_|transformer_"
    r"|diffusion_model_)?(?:base_model_model_)?")
_TEXT_PREFIXES = re.compile(
    r"(?:base_model_model_)?(?:(?:lora_)?te(?P<short>\d?)_|text_encoders_clip_(?P<native>[lgh])_transformer_"
    r"|text_encoders?_?(?P<long>\d?)_|clip_(?P<bare>[lgh])_)?(?:transformer_)?(?:base_model_model_)?(?:text_model_)?")


def spellings(layer: str) -> Iterator[str]:
    """Ways to write a layer, underscored, the likeliest first. Which of them a model has is for its key map to say."""
    flat = underscored(layer)
    yield flat
    yield from _text_spellings(flat) if is_text(layer) else _denoiser_spellings(flat)


def _denoiser_spellings(flat: str) -> Iterator[str]:
    core = flat[_PREFIXES.match(flat).end():].replace("_processor_", "_")
    for name in (core, f"{core}_0") if core.endswith("to_out") else (core,):
        for prefix in ("lora_unet_", "diffusion_model_", "lora_transformer_", "transformer_", ""):
            yield prefix + name


def _text_spellings(flat: str) -> Iterator[str]:
    match = _TEXT_PREFIXES.match(flat)
    core = flat[match.end():]
    encoder = match["short"] or match["long"] or {"g": "2"}.get(match["native"] or match["bare"], "")
    # The first encoder has no number in files for models with one encoder; the host knows both names then.
    numbers = (encoder,) if encoder not in ("", "1") else ("1", "")
    for name in (f"text_model_{core}", core):
        for number in numbers:
            yield f"lora_te{number}_{name}"
