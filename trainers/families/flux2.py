"""FLUX.2 klein (4B and 9B, base and distilled) and dev: FLUX.1's two kinds of blocks without biases, one modulation for all
blocks of a kind, gated feed-forwards, and no pooled state. They are told by three hidden states of a language model."""
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import SCALE, KeyMap, Rows, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..objectives.noise import ShiftByLength
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .flux2_latents import Flux2Latents
from .protocol import LoraPreset, Predict, UsualSampling
from .samplers import FlowSampler
from .text.encoder_kind import TextPart
from .text.language_model import MISTRAL, QWEN3, LanguageModel
from .text.taps import FLUX2_DEV, FLUX2_KLEIN
from .transformer_family import Shapes, TransformerFamily, layer_choices
from .variants import Variant

GUIDANCE = "guidance_in.in_layer.weight"
"""What dev has and klein lacks."""
DOUBLE, SINGLE = "double_blocks.{}.", "single_blocks.{}."
DIFFUSERS_DOUBLE, DIFFUSERS_SINGLE = "transformer_blocks.{}.", "single_transformer_blocks.{}."


def _stream(native: str, joined: str, rows: tuple[str, ...], out: str, norms: str, feed_forward: str) -> tuple[Rule, ...]:
    """One of the two streams of the double blocks. The gate of a feed-forward is the first half of its rows everywhere."""
    native, module = f"{DOUBLE}{native}", DIFFUSERS_DOUBLE
    return (
        Rule(f"{native}_attn.qkv", f"{module}attn.{joined}", rows=tuple(Rows(f"{module}attn.{each}") for each in rows),
             ratio=Fraction(3)),
        Rule(f"{native}_attn.proj", f"{module}attn.{out}", ratio=Fraction(1)),
        Rule(f"{native}_attn.norm.query_norm", f"{module}attn.norm_{norms}q", tensors=SCALE),
        Rule(f"{native}_attn.norm.key_norm", f"{module}attn.norm_{norms}k", tensors=SCALE),
        Rule(f"{native}_mlp.0", f"{module}{feed_forward}.linear_in", ratio=Fraction(6)),
        Rule(f"{native}_mlp.2", f"{module}{feed_forward}.linear_out", ratio=Fraction(1, 3)),
    )


KEY_MAP = KeyMap((
    *_stream("img", "to_qkv", ("to_q", "to_k", "to_v"), "to_out.0", "", "ff"),
    *_stream("txt", "to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "added_", "ff_context"),
    Rule(f"{SINGLE}linear1", f"{DIFFUSERS_SINGLE}attn.to_qkv_mlp_proj", ratio=Fraction(9)),
    Rule(f"{SINGLE}linear2", f"{DIFFUSERS_SINGLE}attn.to_out", ratio=Fraction(1, 4)),
    Rule(f"{SINGLE}norm.query_norm", f"{DIFFUSERS_SINGLE}attn.norm_q", tensors=SCALE),
    Rule(f"{SINGLE}norm.key_norm", f"{DIFFUSERS_SINGLE}attn.norm_k", tensors=SCALE),
    *(Rule(f"{each}.lin", f"{each}.linear") for each in (
        "double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")),
    Rule("img_in", "x_embedder"), Rule("txt_in", "context_embedder"),
    *(Rule(f"{native}_in.{place}_layer", f"time_guidance_embed.{module}_embedder.linear_{number}")
      for native, module in (("time", "timestep"), ("guidance", "guidance")) for number, place in ((1, "in"), (2, "out"))),
    Rule("final_layer.adaLN_modulation.1", "norm_out.linear", swapped="always"),
    Rule("final_layer.linear", "proj_out"),
))
"""Sources: the original code (black-forest-labs/flux2) and diffusers' conversion script."""

QWEN = LanguageModel(QWEN3, FLUX2_KLEIN)
ATTENTION = r"\.attn\.(to_qkv|to_added_qkv|to_out(\.0)?|to_add_out|to_qkv_mlp_proj)$"
"""The single blocks' two layers hold attention and feed-forward together; without the second, LoRAs stay weak."""
FEED_FORWARD = r"\.ff(_context)?\.linear_(in|out)$"
MODULATION = r"_modulation(_img|_txt)?\.linear$"


@dataclass(frozen=True)
class StepwiseSampler(FlowSampler):
    """Whose shift depends on the number of steps too: `mu(tokens, steps)` is its logarithm."""

    mu: Callable[[int, int], float] = lambda tokens, steps: 0.0

    def sample(self, predict: Predict, noise: Tensor, steps: int) -> Tensor:
        plain = FlowSampler(lambda height, width: math.exp(self.mu(height * width, steps)), self.guidance)
        return plain.sample(predict, noise, steps)


def empirical_mu(tokens: int, steps: int) -> float:
    """The logarithm of the shift for so many tokens and steps, as in diffusers' pipelines and ComfyUI's Flux2Scheduler:
    FLUX.1's line at 200 steps, another one at 10, and lines between them. For 1024² and 50 steps it is 2.02, which ComfyUI's
    other schedulers take for all sizes."""
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return many + (few - many) * (200 - steps) / 190


def _klein(size: str, width: int) -> tuple[Variant, Variant]:
    """The distilled model and the one that it was made of, in a size. Their files differ in nothing but numbers."""
    def fits(shapes: Shapes) -> bool:
        return shapes["img_in.weight"][0] == width and GUIDANCE not in shapes
    base = f"FLUX.2 klein base {size}"
    return (Variant(f"FLUX.2 klein {size}", "^(?!.*base).*klein", fits, "none", UsualSampling(steps=4), distilled=True,
                    instead=f"{base}, whose LoRAs work with klein {size} too"),
            Variant(base, fits=fits, sampling=UsualSampling(guidance=4.0)))


class Flux2(Flux2Latents, TransformerFamily):
    name, title = "flux2", "FLUX.2"
    class_name, needs_diffusers, vae_prefix = "Flux2Transformer2DModel", "0.36", "vae."
    vae_files = ("flux2-vae.safetensors",)
    layer_names = TransformerNames(
        "flux2", "FLUX.2", (BASE, *numbered("DOUBLE", 8), *numbered("SINGLE", 48), EXTRA), KEY_MAP,
        marker="double_stream_modulation_img.lin.weight",
        numbered=MappingProxyType({"double_blocks": "DOUBLE", "single_blocks": "SINGLE"}),
        attention=r"single_blocks_\d+_linear[12]", widths=frozenset({3072, 4096, 6144}),
        smaller=(MappingProxyType({"DOUBLE": 8, "SINGLE": 24}), MappingProxyType({"DOUBLE": 5, "SINGLE": 20})),
        stated=("flux2", "flux-2", "flux.2"), reads="txt_in", written="comfyui")
    refused = MappingProxyType({"Flux2KleinKVPipeline": "a FLUX.2 klein that edits images"})
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "qwen3_4b", QWEN, ("qwen_3_4b.safetensors",), read=7680),
        "te2": TextPart("text_encoder", "qwen3_8b", QWEN, (
            "qwen_3_8b.safetensors", "qwen_3_8b_fp8mixed.safetensors"), read=12288),
        "te3": TextPart("text_encoder", "mistral3_24b", LanguageModel(MISTRAL, FLUX2_DEV), (
            "mistral_3_small_flux2_bf16.safetensors", "mistral_3_small_flux2_fp8.safetensors"), read=15360),
    })
    variants = (
        Variant("FLUX.2 dev", fits=lambda shapes: GUIDANCE in shapes, guidance="distilled",
                sampling=UsualSampling(guidance=4.0)),
        *(each for size, width in (("4B", 3072), ("9B", 4096)) for each in _klein(size, width)),
    )
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, MODULATION)
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=32, alpha=32, steps=3000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0, targets="attention and feed-forward",
        source="ai-toolkit's interface: rank and alpha 32, 1e-4, 3000 steps; musubi-tuner's documentation for FLUX.2 and "
               "DiffSynth-Studio's script for klein base: rank 32, 1e-4, all layers of the blocks")
    lora_goals = MappingProxyType({
        "subject": replace(lora_preset, rank=4, alpha=4, steps=500, batch_size=4,
                           source="diffusers' DreamBooth README for FLUX.2: 1e-4, 500 steps of 4 images of 1024 pixels, "
                                  "with its script's rank of 4"),
        "quick try": replace(lora_preset, rank=4, alpha=4, steps=500, batch_size=4, resolution=512,
                             source="the same with images of 512 pixels, as in that README's example with prodigy"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "flux2", "ss_v2": "False", "modelspec.architecture": "flux-2"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        (width, channels), head = shapes["img_in.weight"], shapes["single_blocks.0.norm.query_norm.scale"][0]
        return dict(
            in_channels=channels, num_layers=KEY_MAP.blocks(shapes, "double_blocks"),
            num_single_layers=KEY_MAP.blocks(shapes, "single_blocks"), attention_head_dim=head,
            axes_dims_rope=(head // 4,) * 4, num_attention_heads=width // head,
            joint_attention_dim=shapes["txt_in.weight"][1], guidance_embeds=GUIDANCE in shapes)

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        """In training as FLUX.1's, by the constants of the scheduler: so its makers say that it was trained."""
        by_length = ShiftByLength()
        return lambda height, width: by_length(height * width)

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> StepwiseSampler:
        return StepwiseSampler(self.timestep_shift(base), self.guidance(base), mu=empirical_mu)

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents are tokens already. "guidance" [batch] is 1 where the conditioning does not hold it: what recipes train
        dev with."""
        image = positions(latents)
        given = "guidance" in conditioning
        guidance = conditioning["guidance"] if given else torch.ones(len(latents), device=latents.device)

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            return denoiser(latents[chosen].flatten(2).transpose(1, 2), said["hidden"], timesteps[chosen] / 1000, image,
                            text_positions(said["hidden"]), guidance[chosen] if _has_guidance(denoiser) else None,
                            return_dict=False)[0]
        return by_length(some, conditioning, "hidden").transpose(1, 2).unflatten(2, latents.shape[-2:])


def positions(latents: Tensor, step: float = 1.0) -> Tensor:
    """(time, row, column, word) of the tokens of an image, float32 [height · width, 4]; rows and columns are counted by
    `step`."""
    height, width = latents.shape[-2:]
    places = torch.zeros(height, width, 4, device=latents.device)
    places[..., 1] = step * torch.arange(height, device=latents.device)[:, None]
    places[..., 2] = step * torch.arange(width, device=latents.device)
    return places.flatten(0, 1)


def text_positions(states: Tensor) -> Tensor:
    """The same of words, [tokens, 4]."""
    places = torch.zeros(states.shape[1], 4, device=states.device)
    places[:, 3] = torch.arange(states.shape[1], device=states.device)
    return places


def _has_guidance(denoiser: nn.Module) -> bool:
    return any(name.startswith("time_guidance_embed.guidance_embedder.") for name, _ in denoiser.named_modules())


FLUX2 = Flux2()
