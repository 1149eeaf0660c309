"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206): a transformer in which text and image have weights of
their own and attend together, told by CLIP-L, CLIP-G and T5-XXL, each of which may be missing."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifacts.layer_names import text as names
from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import NORM, WHOLE, KeyMap, Rows, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .protocol import LoraPreset, TextEncoders, UsualSampling
from .text import clip, t5
from .text.encoder_kind import TextPart
from .text.t5 import T5
from .transformer_family import Shapes, TransformerFamily, layer_choices

HEAD = 64
"""Width of an attention head; SD3 has as many heads as blocks."""
WIDTH, CLIP_L, CLIP_G, CLIP_TOKENS = 4096, 768, 1280, 77
"""Of token states, which are those of T5; of the pooled states; and tokens of CLIP."""
SHIFT = 3.0
"""Section 5.3.2 of the paper; ComfyUI samples with it."""


def _block(native: str, module: str, **how) -> Rule:
    return Rule(f"joint_blocks.{{}}.{native}", f"transformer_blocks.{{}}.{module}", **how)


def _attention(native: str, attention: str, joined: str, rows: Sequence[str], out: str, norms: tuple[str, str]):
    """q, k and v joined, the projection behind them, and the norms of q and k where a model has them (SD3.5)."""
    start = f"transformer_blocks.{{}}.{attention}"
    return (
        Rule(f"joint_blocks.{{}}.{native}.qkv", f"{start}.{joined}", tuple(Rows(f"{start}.{each}") for each in rows)),
        _block(f"{native}.proj", f"{attention}.{out}"),
        _block(f"{native}.ln_q", f"{attention}.{norms[0]}", tensors=NORM),
        _block(f"{native}.ln_k", f"{attention}.{norms[1]}", tensors=NORM),
    )


QKV, OWN_NORMS = ("to_q", "to_k", "to_v"), ("norm_q", "norm_k")
KEY_MAP = KeyMap((
    *_attention("x_block.attn", "attn", "to_qkv", QKV, "to_out.0", OWN_NORMS),
    *_attention("x_block.attn2", "attn2", "to_qkv", QKV, "to_out.0", OWN_NORMS),
    *_attention("context_block.attn", "attn", "to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out",
                ("norm_added_q", "norm_added_k")),
    _block("x_block.adaLN_modulation.1", "norm1.linear"),
    _block("context_block.adaLN_modulation.1", "norm1_context.linear", swapped="last"),
    _block("x_block.mlp.fc1", "ff.net.0.proj"), _block("x_block.mlp.fc2", "ff.net.2"),
    _block("context_block.mlp.fc1", "ff_context.net.0.proj"), _block("context_block.mlp.fc2", "ff_context.net.2"),
    Rule("pos_embed", "pos_embed.pos_embed", tensors=WHOLE),
    Rule("x_embedder.proj", "pos_embed.proj", kernel=(2, 2)),
    Rule("context_embedder", "context_embedder"),
    Rule("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    Rule("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    Rule("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    Rule("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    Rule("final_layer.adaLN_modulation.1", "norm_out.linear", swapped="always"),
    Rule("final_layer.linear", "proj_out"),
))
"""Sources: the original code (Stability-AI/sd3.5) and diffusers' conversion script; in the last block the context has shift
and scale only, whose order differs."""

ATTENTION = r"attn2?\.(to_qkv|to_added_qkv|to_out\.0|to_add_out)$"
FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)$"
MODULATION = r"norm1(_context)?\.linear$"


class StableDiffusion3(TransformerFamily):
    name, title = "sd3", "Stable Diffusion 3"
    class_name, vae_prefix = "SD3Transformer2DModel", "first_stage_model."
    vae_files = ("sd3_vae.safetensors", "sd3.5_vae.safetensors")
    layer_names = TransformerNames(
        "sd3", "Stable Diffusion 3", (BASE, *numbered("JOINT", 38), EXTRA), KEY_MAP,
        marker="joint_blocks.0.context_block.attn.qkv.weight", numbered=MappingProxyType({"joint_blocks": "JOINT"}),
        text=(names.clip_l("te1", projection=True), names.clip_g("te2"), names.t5("te3", "text_encoder_3")),
        absent=r"joint_blocks\.(1[3-9]|[23]\d)\.x_block\.attn2\..+|joint_blocks\.37\.context_block\.(attn\.proj|mlp\..+)",
        widths=frozenset({1536, 2432}), smaller=(MappingProxyType({"JOINT": 24}),), stated=("sd3", "stable-diffusion-3"))
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "clip_l", clip.CLIP_L, ("clip_l.safetensors",), required=False),
        "te2": TextPart("text_encoder_2", "clip_g", clip.CLIP_G, ("clip_g.safetensors",), required=False),
        "te3": TextPart("text_encoder_3", "t5xxl", T5(shortest=77, longest=256), t5.FILES, required=False),
    })
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, MODULATION)
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0,
        source="ai-toolkit's example for SD3.5 Large: rank and alpha 16, 1e-4, 2000 steps; kohya's documentation for SD3: "
               "rank 16, 1e-4")
    lora_goals = MappingProxyType({
        "style": replace(lora_preset, rank=32, alpha=32, steps=1500,
                         source="diffusers' README for SD3 (yarn art): rank 32, 1500 steps of 1024 pixels, with the rate of "
                                "kohya's documentation in place of prodigy"),
        "quick try": replace(lora_preset, learning_rate=4e-4, rank=4, alpha=4, steps=500, batch_size=4, resolution=512,
                             source="diffusers' DreamBooth README for SD3: 4e-4, rank 4, 500 steps of 4 images of 512 "
                                    "pixels"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "sd3_m", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-3-medium"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        def count(name: str, axis: int) -> int:
            return shapes[name][axis]

        width, depth = count("x_embedder.proj.weight", 0), KEY_MAP.blocks(shapes, "joint_blocks")
        dual = tuple(number for number in range(depth) if f"joint_blocks.{number}.x_block.attn2.qkv.weight" in shapes)
        return dict(
            in_channels=count("x_embedder.proj.weight", 1), out_channels=count("final_layer.linear.weight", 0) // 4,
            num_layers=depth, attention_head_dim=HEAD, num_attention_heads=width // HEAD,
            joint_attention_dim=count("context_embedder.weight", 1), caption_projection_dim=width,
            pooled_projection_dim=count("y_embedder.mlp.0.weight", 1),
            pos_embed_max_size=round(count("pos_embed", 1) ** 0.5), dual_attention_layers=dual,
            qk_norm="rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None)

    def usual_sampling(self, base: BaseModelSpec) -> UsualSampling:
        """As Stability's cards say."""
        return UsualSampling(guidance=4.5, steps=28)

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        return lambda height, width: SHIFT

    def encode_with(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """Penultimate states of both CLIPs, the pooled ones of CLIP-L without its projection (as the original code has
        it), those of CLIP-G with it; last states of T5, without a mask."""
        if encoder == "te3":
            return super().encode_with(text, encoder, captions)
        output = clip.states(text, encoder, captions)
        pooled = output.pooler_output if encoder == "te1" else output.text_embeds
        return Conditioning({"hidden": output.hidden_states[-1 - max(text.clip_skip - 1, 1)], "pooled": pooled})

    def joined(self, said: Mapping[str, Conditioning]) -> Conditioning:
        """The states of both CLIPs side by side, zeros up to T5's width, and T5's tokens behind them; zeros for pooled
        states of what is missing, and no tokens for a missing T5: as ComfyUI does it."""
        one, tokens = next(iter(said.values()))["hidden"], said.get("te3")
        width = tokens["hidden"].shape[-1] if tokens else WIDTH
        sequences, masks = [], {}
        if "te1" in said or "te2" in said:
            states = [said[name]["hidden"] for name in ("te1", "te2") if name in said]
            before = 0 if "te1" in said else CLIP_L
            both = torch.cat(states, dim=-1)
            sequences.append(F.pad(both, (before, width - before - both.shape[-1])))
        if tokens:
            if tokens.masks:  # captions of different lengths in one batch
                masks["hidden"] = F.pad(tokens.mask("hidden"), (sum(each.shape[1] for each in sequences), 0), value=True)
            sequences.append(tokens["hidden"])
        pooled = [said[name]["pooled"] if name in said else one.new_zeros(len(one), missing)
                  for name, missing in (("te1", CLIP_L), ("te2", CLIP_G))]
        return Conditioning({"hidden": torch.cat(sequences, dim=1), "pooled": torch.cat(pooled, dim=-1)}, masks)

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            return denoiser(latents[chosen], said["hidden"], said["pooled"], timesteps[chosen], return_dict=False)[0]
        return by_length(some, conditioning, "hidden")


SD3 = StableDiffusion3()
