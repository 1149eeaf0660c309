"""Qwen-Image (Wu et al. 2025, arXiv:2508.02324), also its version of December 2025 (2512): blocks in which text and image
have weights of their own and attend together, told by the last states of Qwen2.5-VL-7B."""
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import NORM, KeyMap, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..objectives.noise import FamilyShift, ShiftByLength
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .model_parts import ModelSource
from .protocol import LoraPreset, UsualSampling
from .qwen_latents import QwenLatents
from .samplers import FlowSampler
from .text import taps
from .text.encoder_kind import TextPart
from .text.language_model import QWEN25_VL, LanguageModel
from .transformer_family import TransformerFamily, layer_choices
from .variants import Shapes, Variant

HEAD, AXES = 128, (16, 56, 56)
"""Width of an attention head, and its parts that are turned by a token's position: (frame, row, column)."""
SHIFT, LAST_SIGMA = ShiftByLength(second=(8192, 0.9)), 0.02
"""Of the scheduler that comes with the model: the line of its shift, and the noise that is left before the last step."""

SAMPLING = UsualSampling(guidance=3.0, steps=25)
"""As ai-toolkit's example; the model's card has 50 steps with 4."""
UNDISTILLED = "Qwen-Image or Qwen-Image-2512: a LoRA made on them works together with a Lightning LoRA"
EDIT = re.compile(r"qwen.?image.?edit", re.IGNORECASE)
"""Qwen-Image-Edit and Edit-2509 have the layers of Qwen-Image; only their names tell."""
MAGE_FLOW = 2560
"""Width of its text states; it is a relative of Microsoft's with the same names of layers."""


def _same(name: str, **how) -> Rule:
    """The original file has diffusers' names."""
    return Rule(name, name, **how)


def _block(name: str, **how) -> Rule:
    return _same(f"transformer_blocks.{{}}.{name}", **how)


KEY_MAP = KeyMap((
    *(_block(f"attn.{layer}") for layer in (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(_block(f"attn.norm_{each}", tensors=NORM) for each in ("q", "k", "added_q", "added_k")),
    *(_block(f"{stream}_{layer}") for stream in ("img", "txt") for layer in ("mod.1", "mlp.net.0.proj", "mlp.net.2")),
    _same("img_in"), _same("txt_in"), _same("txt_norm", tensors=NORM),
    _same("time_text_embed.timestep_embedder.linear_1"), _same("time_text_embed.timestep_embedder.linear_2"),
    _same("norm_out.linear"), _same("proj_out"),
))

ATTENTION = r"attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)$"
FEED_FORWARD = r"(img|txt)_mlp\.net\.(0\.proj|2)$"
MODULATION = r"(img|txt)_mod\.1$"


class QwenImage(QwenLatents, TransformerFamily):
    name, title = "qwen_image", "Qwen-Image"
    class_name, vae_prefix, overflows = "QwenImageTransformer2DModel", "vae.", True
    vae_files = ("qwen_image_vae.safetensors",)
    layer_names = TransformerNames(
        "qwen_image", "Qwen-Image", (BASE, *numbered("BLOCK", 60), EXTRA), KEY_MAP, marker="txt_norm.weight",
        numbered=MappingProxyType({"transformer_blocks": "BLOCK"}), widths=frozenset({3072, 3584, 12288}),
        stated=("qwen_image", "qwen-image", "qwenimage"), written="comfyui", shared=True, reads="txt_in")
    text_parts = MappingProxyType({"te1": TextPart(
        "text_encoder", "qwen25_7b", LanguageModel(QWEN25_VL, taps.QWEN_IMAGE),
        ("qwen_2.5_vl_7b.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors"))})
    variants = (
        Variant("Qwen-Image-Distill", "distill", guidance="none", sampling=UsualSampling(steps=15), distilled=True,
                instead=UNDISTILLED),
        Variant("Qwen-Image with Lightning", "lightning|rapid|[48]-?steps?", guidance="none",
                sampling=UsualSampling(steps=8), distilled=True, instead=UNDISTILLED),
        Variant("Qwen-Image-2512", "2512", sampling=SAMPLING),
        Variant("Qwen-Image", sampling=SAMPLING),
    )
    refused = MappingProxyType({
        "__index_timestep_zero__": "Qwen-Image-Edit 2511",
        "time_text_embed.addition_t_embedding.weight": "Qwen-Image-Layered",
        "QwenImageEditPipeline": "Qwen-Image-Edit", "QwenImageEditPlusPipeline": "Qwen-Image-Edit",
        "QwenImageLayeredPipeline": "Qwen-Image-Layered",
    })
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, MODULATION)
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0,
        source="ai-toolkit's example for Qwen-Image: rank and alpha 16, 1e-4, 2000 steps; musubi-tuner's documentation: "
               "rank 16, 5e-5")
    lora_goals = MappingProxyType({
        "style": replace(lora_preset, rank=32, alpha=32, steps=3000,
                         source="ai-toolkit's interface: rank and alpha 32, 1e-4, 3000 steps"),
        "subject": replace(lora_preset, learning_rate=2e-4, steps=500, batch_size=4,
                           source="diffusers' DreamBooth README for Qwen-Image: 2e-4, 500 steps of 4 images, with the rank "
                                  "of ai-toolkit's example"),
        "quick try": replace(lora_preset, steps=500, resolution=512,
                             source="ai-toolkit's example for Qwen-Image with its fewest steps and smallest images: 500 of "
                                    "512 pixels"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "qwen_image", "ss_v2": "False", "modelspec.architecture": "qwen-image"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        return dict(
            in_channels=shapes["img_in.weight"][1], out_channels=shapes["proj_out.weight"][0] // 4,
            num_layers=KEY_MAP.blocks(shapes, "transformer_blocks"), attention_head_dim=HEAD,
            num_attention_heads=shapes["img_in.weight"][0] // HEAD, joint_attention_dim=shapes["txt_norm.weight"][0],
            axes_dims_rope=AXES)

    def make_denoiser(self, shapes: Shapes) -> nn.Module:
        """The tables of positions are in no file and need their numbers."""
        from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope

        denoiser = super().make_denoiser(shapes)
        with torch.device("cpu"):
            denoiser.pos_embed = QwenEmbedRope(theta=10000, axes_dim=list(AXES), scale_rope=True)
        return denoiser

    def unread_layers(self, denoiser: Any) -> list[str]:
        """Of the last block, in which text is told what no further block asks for."""
        last = f"transformer_blocks.{len(denoiser.transformer_blocks) - 1}."
        return [f"{last}{layer}" for layer in (
            "attn.add_q_proj", "attn.norm_added_q", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")]

    def relative(self, source: ModelSource, tensors: Mapping[str, dict], prefix: str) -> str:
        if tensors[f"{prefix}txt_norm.weight"]["shape"] == [MAGE_FLOW]:
            return "Mage-Flow"
        edit = "Qwen-Image-Edit (by its name)" if EDIT.search(source.name) else ""
        return super().relative(source, tensors, prefix) or edit

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        return lambda height, width: SHIFT(height // self.patch * (width // self.patch))

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> FlowSampler:
        return replace(super().sampler(base, zero_terminal_snr), last_sigma=LAST_SIGMA)

    def noise_shift(self, base: BaseModelSpec) -> FamilyShift:
        return replace(super().noise_shift(base), line=SHIFT)

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents become tokens of 2 × 2, whose places count from the middle of the image. Text begins where the longer
        side ends. Where a side has an odd number of tokens, ComfyUI's middle is one token further than the model's own,
        which is kept here."""
        height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
        packed = F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
        asks_length = "txt_seq_lens" in signature(type(denoiser).forward).parameters  # diffusers before 0.37 needs it

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            words, count = said["hidden"], len(chosen)
            return denoiser(
                hidden_states=packed[chosen], encoder_hidden_states=words, timestep=timesteps[chosen] / 1000,
                img_shapes=[[(1, height, width)]] * count, return_dict=False,
                **{"txt_seq_lens": [words.shape[1]] * count} if asks_length else {})[0]
        found = by_length(some, conditioning, "hidden")
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, (height, width)), 2)


QWEN_IMAGE = QwenImage()
