"""FLUX.1 dev and schnell: blocks in which text and image have weights of their own, and blocks that they share, told by
T5-XXL and the pooled state of CLIP-L. dev is told how closely to follow the prompt; schnell is distilled for few steps."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifacts.layer_names import text as names
from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import SCALE, KeyMap, Rows, Rule, Split
from ..artifacts.layer_names.transformer import TransformerNames
from ..objectives.noise import ShiftByLength
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .protocol import LoraPreset, UsualSampling
from .text import t5
from .text.clip import CLIP_L
from .text.encoder_kind import TextPart
from .text.t5 import T5
from .transformer_family import Shapes, TransformerFamily, layer_choices
from .variants import Variant

HEAD = 128
GUIDANCE = "guidance_in.in_layer.weight"
"""What dev has and schnell lacks."""
AXES = (16, 56, 56)
"""Parts of a head that are turned by a token's position: (unused, row, column). Other heads are cut in proportion."""


def _double(native: str, module: str, **how) -> Rule:
    return Rule(f"double_blocks.{{}}.{native}", f"transformer_blocks.{{}}.{module}", **how)


def _single(native: str, module: str, **how) -> Rule:
    return Rule(f"single_blocks.{{}}.{native}", f"single_transformer_blocks.{{}}.{module}", **how)


def _stream(native: str, joined: str, rows: Sequence[str], out: str, norms: str, feed_forward: str):
    """One of the two streams of the double blocks."""
    return (
        _double(f"{native}_attn.qkv", joined, rows=tuple(Rows(f"transformer_blocks.{{}}.{each}") for each in rows)),
        _double(f"{native}_attn.proj", out),
        _double(f"{native}_attn.norm.query_norm", f"attn.norm_{norms}q", tensors=SCALE),
        _double(f"{native}_attn.norm.key_norm", f"attn.norm_{norms}k", tensors=SCALE),
        _double(f"{native}_mlp.0", f"{feed_forward}.net.0.proj", ratio=Fraction(4),
                others=(Split(f"transformer_blocks.{{}}.{feed_forward}.linear_in"),)),
        _double(f"{native}_mlp.2", f"{feed_forward}.net.2", ratio=Fraction(1, 4),
                others=(Split(f"transformer_blocks.{{}}.{feed_forward}.linear_out"),)),
    )


def _embedder(native: str, module: str) -> tuple[Rule, Rule]:
    return (Rule(f"{native}.in_layer", f"time_text_embed.{module}_embedder.linear_1"),
            Rule(f"{native}.out_layer", f"time_text_embed.{module}_embedder.linear_2"))


_SINGLE = "single_transformer_blocks.{}."
UNMODULATED = (
    *_stream("img", "attn.to_qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_out.0", "", "ff"),
    *_stream("txt", "attn.to_added_qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "attn.to_add_out",
             "added_", "ff_context"),
    _single("linear1", "linear1", rows=(Rows(f"{_SINGLE}attn.to_q"), Rows(f"{_SINGLE}attn.to_k"),
                                        Rows(f"{_SINGLE}attn.to_v"), Rows(f"{_SINGLE}proj_mlp", 4)),
            others=(Split("single_blocks.{}.linear1_qkv", 0, 3, 7),), ratio=Fraction(7)),
    _single("linear2", "proj_out", ratio=Fraction(1, 5)),
    _single("norm.query_norm", "attn.norm_q", tensors=SCALE), _single("norm.key_norm", "attn.norm_k", tensors=SCALE),
    Rule("img_in", "x_embedder", others=(Split("img_in.proj"),)), Rule("txt_in", "context_embedder"),
    Rule("final_layer.linear", "proj_out"),
)
"""All but what says how noisy the image is."""
KEY_MAP = KeyMap((
    *UNMODULATED, _double("img_mod.lin", "norm1.linear"), _double("txt_mod.lin", "norm1_context.linear"),
    _single("modulation.lin", "norm.linear"),
    *_embedder("time_in", "timestep"), *_embedder("vector_in", "text"), *_embedder("guidance_in", "guidance"),
    Rule("final_layer.adaLN_modulation.1", "norm_out.linear", swapped="always"),
))
"""Sources: the original code (black-forest-labs/flux) and diffusers' conversion script."""

ATTENTION = r"attn\.(to_qkv|to_added_qkv|to_out\.0|to_add_out)$|\.linear1$|blocks\.\d+\.proj_out$"
"""The single blocks' two layers hold attention and feed-forward together."""
FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)$"
MODULATION = r"norm(1|1_context)?\.linear$"


class Flux(TransformerFamily):
    name, title = "flux", "FLUX.1"
    class_name, vae_prefix = "FluxTransformer2DModel", "vae."
    vae_files = ("ae.safetensors",)
    layer_names = TransformerNames(
        "flux", "FLUX.1", (BASE, *numbered("DOUBLE", 19), *numbered("SINGLE", 38), EXTRA), KEY_MAP,
        marker="double_blocks.0.img_attn.norm.key_norm.scale",
        numbered=MappingProxyType({"double_blocks": "DOUBLE", "single_blocks": "SINGLE"}),
        without=("double_stream_modulation_img.lin.weight", "distilled_guidance_layer.norms.0.scale"),
        text=(names.clip_l("te1"), names.t5("te3", "text_encoder_2")), attention=r"single_blocks_\d+_linear[12]",
        widths=frozenset({3072}), stated=("flux",))
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "clip_l", CLIP_L, ("clip_l.safetensors",)),
        "te3": TextPart("text_encoder_2", "t5xxl", T5(shortest=256, longest=512), t5.FILES)})
    variants = (
        Variant("FLUX.1 dev", fits=lambda shapes: GUIDANCE in shapes, guidance="distilled",
                sampling=UsualSampling(guidance=3.5)),
        Variant("FLUX.1 schnell", fits=lambda shapes: GUIDANCE not in shapes, guidance="none",
                sampling=UsualSampling(steps=4), distilled=True,
                instead="FLUX.1 dev, whose LoRAs work with schnell too",
                assistant="ostris publishes FLUX.1-schnell-training-adapter"),
    )
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, MODULATION)
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0,
        source="ai-toolkit's example for FLUX.1: rank and alpha 16, 1e-4, 2000 steps; kohya's documentation: rank 16, 1e-4")
    lora_goals = MappingProxyType({
        "style": replace(lora_preset, rank=32, alpha=32, steps=3000,
                         source="ai-toolkit's interface: rank and alpha 32, 1e-4, 3000 steps"),
        "subject": replace(lora_preset, steps=500, batch_size=4,
                           source="diffusers' DreamBooth README for FLUX.1: 500 steps of 4 images, with the rate of "
                                  "ai-toolkit's and kohya's examples in place of prodigy"),
        "quick try": replace(lora_preset, learning_rate=3e-4, steps=1000, resolution=512,
                             source="the kohya interface's preset for FLUX.1: rank and alpha 16, 3e-4, 1000 steps of 512 "
                                    "pixels"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "flux1", "ss_v2": "False", "modelspec.architecture": "flux-1-dev"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        width = shapes["img_in.weight"][0]
        return dict(
            in_channels=shapes["img_in.weight"][1], out_channels=shapes["final_layer.linear.weight"][0],
            num_layers=KEY_MAP.blocks(shapes, "double_blocks"), num_single_layers=KEY_MAP.blocks(shapes, "single_blocks"),
            attention_head_dim=HEAD, num_attention_heads=width // HEAD, joint_attention_dim=shapes["txt_in.weight"][1],
            pooled_projection_dim=shapes["vector_in.in_layer.weight"][1], guidance_embeds=GUIDANCE in shapes,
            axes_dims_rope=AXES)

    def reads_clip_skip(self, base: BaseModelSpec) -> bool:
        """Of CLIP only the pooled state is read."""
        return False

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        """dev's grows with the packed tokens, as its scheduler says; schnell has none."""
        if self.variant(base).distilled:
            return lambda height, width: 1.0
        by_length = ShiftByLength()
        return lambda height, width: by_length(height // self.patch * (width // self.patch))

    def joined(self, said: Mapping[str, Conditioning]) -> Conditioning:
        return said["te3"] | said["te1"]

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents become tokens of 2 × 2. "guidance" [batch] is 1 where the conditioning does not hold it: what published
        recipes train dev with."""
        tokens, places = packed(latents)
        given = "guidance" in conditioning
        guidance = conditioning["guidance"] if given else torch.ones(len(latents), device=latents.device)

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            words = torch.zeros(said["hidden"].shape[1], 3, device=latents.device)
            return denoiser(tokens[chosen], said["hidden"], said["pooled"], timesteps[chosen] / 1000, places, words,
                            guidance[chosen] if _has_guidance(denoiser) else None, return_dict=False)[0]
        return unpacked(by_length(some, conditioning, "hidden"), latents)


def packed(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [batch, channels, height, width] as tokens of 2 × 2 of them, [batch, tokens, 4 · channels], and the places of
    the tokens, [tokens, 3]: (0, row, column)."""
    height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
    places = torch.zeros(height, width, 3, device=latents.device)
    places[..., 1] = torch.arange(height, device=latents.device)[:, None]
    places[..., 2] = torch.arange(width, device=latents.device)[None]
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2), places.flatten(0, 1)


def unpacked(tokens: Tensor, latents: Tensor) -> Tensor:
    """The way back, to the size of `latents`."""
    size = latents.shape[-2] // 2, latents.shape[-1] // 2
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, size), 2)


def _has_guidance(denoiser: nn.Module) -> bool:
    return any(name.startswith("time_text_embed.guidance_embedder.") for name, _ in denoiser.named_modules())


FLUX = Flux()
