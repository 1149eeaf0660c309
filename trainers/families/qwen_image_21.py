"""Qwen-Image-2.1 (September 2026): one stream of text and image with one modulation for all blocks, told by the states of
Qwen3-VL-8B. Words see the words before them, and the image sees everything; words are modulated as at noise level 0."""
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import NORM, KeyMap, Rows, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..objectives.noise import FamilyShift
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .protocol import LoraPreset, UsualSampling
from .qwen_image import AXES, HEAD, LAST_SIGMA, SHIFT
from .qwen_latents import Qwen21Latents
from .samplers import FlowSampler
from .text import taps
from .text.encoder_kind import TextPart
from .text.language_model import QWEN3_VL, LanguageModel
from .transformer_family import TransformerFamily, layer_choices
from .variants import Shapes, Variant


def _same(name: str, **how) -> Rule:
    return Rule(name, name, **how)


_BLOCK = "transformer_blocks.{}."
KEY_MAP = KeyMap((
    *(_same(f"{_BLOCK}attn.{layer}") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    *(_same(f"{_BLOCK}attn.norm_{each}", tensors=NORM) for each in "qk"),
    _same(f"{_BLOCK}img_mlp.gate_up", rows=(Rows(f"{_BLOCK}img_mlp.gate_layer"), Rows(f"{_BLOCK}img_mlp.proj"))),
    _same(f"{_BLOCK}img_mlp.out"),
    _same("img_in"), _same("txt_in.in_layer"), _same("txt_in.out_layer"), _same("txt_in.text_norm", tensors=NORM),
    _same("time_text_embed.timestep_embedder.linear_1"), _same("time_text_embed.timestep_embedder.linear_2"),
    _same("modulation.1"), _same("norm_out.linear"), _same("proj_out"),
))
"""Source: diffusers' conversion of ComfyUI's files, which differ in one layer."""

ATTENTION = r"attn\.to_([qkv]|out\.0)$"
FEED_FORWARD = r"img_mlp\.(gate_up|out)$"


class QwenImage21(Qwen21Latents, TransformerFamily):
    name, title = "qwen_image_21", "Qwen-Image-2.1"
    class_name, needs_diffusers, vae_prefix, overflows = "QwenImage21Transformer2DModel", "0.41", "vae.", True
    vae_files = ("qwen_image_2.1_vae_bf16.safetensors", "qwen_image_2.1_vae.safetensors")
    layer_names = TransformerNames(
        "qwen_image_21", "Qwen-Image-2.1", (BASE, *numbered("BLOCK", 32), EXTRA), KEY_MAP,
        marker="txt_in.text_norm.weight", numbered=MappingProxyType({"transformer_blocks": "BLOCK"}),
        widths=frozenset({4096, 12288}), written="comfyui", shared=True, reads="txt_in.in_layer",
        stated=("qwen_image_2.1", "qwen-image-2.1", "qwen_image_21", "qwenimage21"))
    text_parts = MappingProxyType({"te1": TextPart(
        "text_encoder", "qwen3vl_8b", LanguageModel(QWEN3_VL, taps.QWEN_IMAGE_21),
        ("qwen3vl_8b_bf16.safetensors", "qwen3vl_8b_int8_convrot.safetensors"))})
    variants = (Variant("Qwen-Image-2.1", sampling=UsualSampling(guidance=1.0, steps=40)),)
    """Sampled as the model's card says."""
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, r"^modulation\.1$")
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0,
        source="musubi-tuner's documentation for Qwen-Image-2.1: rank and alpha 16, 1e-4, 2000 steps")
    lora_goals = MappingProxyType({
        "subject": replace(lora_preset, steps=500, batch_size=4,
                           source="diffusers' DreamBooth README for Qwen-Image-2.1: 1e-4, 500 steps of 4 images, with its "
                                  "script's rank and alpha of 16"),
        "quick try": replace(lora_preset, rank=4, alpha=4, steps=500, resolution=512,
                             source="diffusers' DreamBooth README for Qwen-Image-2.1: rank and alpha 4, 1e-4, 500 steps, "
                                    "here of 512 pixels"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "qwen_image_2.1", "ss_v2": "False", "modelspec.architecture": "qwen-image-2.1"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        width = shapes["img_in.weight"][0]
        return dict(
            in_channels=shapes["img_in.weight"][1], out_channels=shapes["proj_out.weight"][0],
            num_layers=KEY_MAP.blocks(shapes, "transformer_blocks"), attention_head_dim=HEAD,
            num_attention_heads=width // HEAD, context_in_dim=shapes["txt_in.in_layer.weight"][1],
            mlp_ratio=shapes["transformer_blocks.0.img_mlp.gate_up.weight"][0] // (2 * width), axes_dims_rope=AXES)

    def make_denoiser(self, shapes: Shapes) -> nn.Module:
        from diffusers.models.transformers.transformer_qwenimage21 import (
            QwenImage21Rope,
            QwenImage21TemporalTimesteps,
            QwenImage21Transformer2DModel,
        )

        class OfCaptions(QwenImage21Transformer2DModel):
            """Made for text and one image: it asks for no tensor's value, so that it can be planned and compiled, and keeps
            noise levels in float32, as samplers do."""

            def forward(self, tokens: Tensor, hidden: Tensor, timesteps: Tensor, height: int, width: int) -> Tensor:
                """Tokens [batch, height · width, channels], the states of words [batch, words, width] and noise levels
                [batch] in 0…1 → the velocity of the tokens."""
                image, text = self.img_in(tokens), self.txt_in(hidden)
                words = text.shape[1]
                joint = torch.cat([text, image], dim=1)
                turns = torch.cat([table.to(joint.device)[index] for table, index in zip(
                    self.pos_embed.freqs, places(words, height, width, joint.device), strict=True)], dim=-1)
                is_image = torch.arange(joint.shape[1], device=joint.device) >= words
                embedded = self.time_text_embed(torch.cat([timesteps, timesteps.new_zeros(1)]), image)
                modulation, segments = self.modulation(embedded), [(0, words, True)]
                checkpoints = torch.is_grad_enabled() and self.gradient_checkpointing
                checkpointed: Any = self._gradient_checkpointing_func
                for block in self.transformer_blocks:
                    inputs = joint, modulation, turns, None, is_image, None, None, None, segments, None
                    joint = checkpointed(block, *inputs) if checkpoints else block(*inputs)
                return self.proj_out(self.norm_out(joint[:, words:], embedded[:-1]))

        denoiser: Any = super().make_denoiser(shapes)
        denoiser.__class__ = OfCaptions
        with torch.device("cpu"):  # what is in no file needs its numbers
            denoiser.pos_embed = QwenImage21Rope(theta=10000, axes_dim=list(AXES))
            denoiser.time_text_embed.time_proj = QwenImage21TemporalTimesteps(timestep_dim=256)
        return denoiser

    def base_notes(self, base: BaseModelSpec) -> list[str]:
        return [*super().base_notes(base), "Qwen-Image-2.1 makes images without guidance (CFG 1); with a LoRA that changes "
                "much they may need a guidance of about 4"]

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        return lambda height, width: SHIFT(height * width)

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> FlowSampler:
        return replace(super().sampler(base, zero_terminal_snr), last_sigma=LAST_SIGMA)

    def noise_shift(self, base: BaseModelSpec) -> FamilyShift:
        """Latents are tokens themselves; that images come in groups of 2 × 2 of them changes no length."""
        return replace(super().noise_shift(base), line=SHIFT, patch=1)

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        size, tokens = latents.shape[-2:], latents.flatten(2).transpose(1, 2)

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            return denoiser(tokens[chosen], said["hidden"], timesteps[chosen] / 1000, *size)
        return by_length(some, conditioning, "hidden").transpose(1, 2).unflatten(2, size)


def places(words: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(frame, row, column) of every token, int64 [words + height · width] each. Words count on all three axes; the image is
    a frame behind them, whose rows and columns count from its middle."""
    text = torch.arange(words, device=device)
    rows, columns = (torch.arange(side, device=device) - (side - side // 2) for side in (height, width))
    frame = torch.full((height * width,), words, device=device)
    image = frame, rows.repeat_interleave(width), columns.repeat(height)
    return tuple(torch.cat([text, each]) for each in image)  # pyright: ignore[reportReturnType]


QWEN_IMAGE_21 = QwenImage21()
