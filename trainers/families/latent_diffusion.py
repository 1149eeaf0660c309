"""What SD 1.x, SD 2.x and SDXL have in common: a UNet over four-channel latents and CLIP text encoders."""
from types import MappingProxyType
from typing import Mapping

import torch
from torch import Tensor, nn

from ..artifacts.ldm_layout import original_unet_name
from .loading import tokenize
from .protocol import LatentFormat, TextEncoders
from .recognition import component_config

ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)$"
LORA_TARGETS = MappingProxyType({
    "attention": ATTENTION,
    "attention and feed-forward": rf"{ATTENTION}|ff\.net\.(0\.proj|2)$|proj_(in|out)$",
    "all with convolutions": (
        rf"{ATTENTION}|ff\.net\.(0\.proj|2)$|proj_(in|out)$"
        r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$|(down|up)samplers\.0\.conv$"
    ),
})
"""The first is the target list of the diffusers LoRA examples; the second adds what kohya's LoRA adds by default
(its Transformer2DModel modules); the third what kohya adds with `conv_dim`."""
TEXT_LORA_TARGET = r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$"


def latent_format(base) -> LatentFormat:
    config = component_config(base, "vae")
    return LatentFormat(
        channels=config["latent_channels"],
        scale=config.get("scaling_factor", 0.18215),
        shift=config.get("shift_factor") or 0.0,
        downscale=2 ** (len(config["block_out_channels"]) - 1),
    )


@torch.no_grad()
def encode_pictures(vae: nn.Module, pixels: Tensor, form: LatentFormat) -> Tensor:
    """The mode of the posterior: its spread is a hundredth of the latents', and the mode can be cached."""
    return (vae.encode(pixels).latent_dist.mode() - form.shift) * form.scale


@torch.no_grad()
def decode_latents(vae: nn.Module, latents: Tensor, form: LatentFormat) -> Tensor:
    return vae.decode(latents / form.scale + form.shift).sample.clamp(-1, 1)


def token_count(tokenizers: Mapping[str, object], caption: str) -> tuple[int, int]:
    """Tokens of a caption and the room for them; two places go to the start and end tokens."""
    tokenizer = next(iter(tokenizers.values()))
    count = len(tokenizer(caption, truncation=False, verbose=False).input_ids) - 2
    return count, tokenizer.model_max_length - 2


def hidden_states(text: TextEncoders, encoder: str, captions):
    """The encoder's output with all hidden states, for tokens cut and padded to its length."""
    return text.encoders[encoder](tokenize(text, encoder, captions), output_hidden_states=True)


def diffusers_key(module_name: str) -> str:
    """LoRA key of a UNet module under diffusers' names, as kohya writes it for SD 1.x and 2.x."""
    return "lora_unet_" + module_name.replace(".", "_")


def original_key(denoiser: nn.Module, module_name: str) -> str:
    """LoRA key of a UNet module under the original names, as kohya writes it for SDXL."""
    config = denoiser.config
    with_attention = ["CrossAttn" in block for block in config.up_block_types]
    name = original_unet_name(module_name, config.layers_per_block, with_attention)
    return "lora_unet_" + name.replace(".", "_")


def text_key(encoder: str, module_name: str) -> str:
    """LoRA key of a text encoder's module; since transformers 5.6 CLIPTextModel's names lack `text_model.`."""
    return f"lora_{encoder}_text_model_" + module_name.removeprefix("text_model.").replace(".", "_")
