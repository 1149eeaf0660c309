"""FLUX 3 Image Klein Base: text and image pass a few blocks of their own before they meet in joint ones. The text is at the
noise level 0 all the time. It is told by eight hidden states of a language model; its autoencoder is FLUX.2's."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.checkpoint import in_precision
from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import SCALE, KeyMap, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..artifacts.tensor_files import Entry
from ..objectives.noise import ShiftByLength
from ..spec import BaseModelSpec
from .component_configs import read_object
from .conditioning import Conditioning, by_length
from .flux2 import positions, text_positions
from .flux2_latents import Flux2Latents
from .model_parts import ModelSource, Recognized
from .protocol import LoraPreset
from .samplers import FlowSampler
from .text.encoder_kind import TextPart
from .text.language_model import QWEN3_VL, LanguageModel
from .text.taps import FLUX3 as TAP
from .transformer_family import TRANSFORMER, Shapes, TransformerFamily, layer_choices

STEP = 0.5
"""From one row or column of an image to the next, in the positions that the model was trained with."""
SHIFT = 6.93
"""Of sampling, at every size."""
REFERENCE = "image_cond"
"""What belongs to images that are edited: trainings on captions alone never run it."""

DISTILLED = "a distilled FLUX 3 Image Klein"
"""It is told besides to which noise level a step goes, which trainings do not know."""


def _blocks(native: str, module: str) -> tuple[Rule, ...]:
    """One of the kinds of blocks; all have the same layers."""
    native, module = f"{native}.{{}}.", f"{module}.{{}}."
    return (
        *(Rule(f"{native}{letter}_proj", f"{module}attn.to_{letter}", ratio=Fraction(1)) for letter in "qkv"),
        Rule(f"{native}attn_out", f"{module}attn.to_out.0", ratio=Fraction(1)),
        Rule(f"{native}norm.query_norm", f"{module}attn.norm_q", tensors=SCALE),
        Rule(f"{native}norm.key_norm", f"{module}attn.norm_k", tensors=SCALE),
        Rule(f"{native}mlp_in", f"{module}ff.linear_in", ratio=Fraction(6)),
        Rule(f"{native}mlp_out", f"{module}ff.linear_out", ratio=Fraction(1, 3)),
    )


KEY_MAP = KeyMap((
    *_blocks("txt_mode_blocks", "txt_mode_blocks"), *_blocks("single_blocks", "single_transformer_blocks"),
    *(rule for mode in ("image", REFERENCE) for rule in (
        *_blocks(f"content_mode_blocks.{mode}", f"mode_blocks.{mode}"), Rule(f"emb_in.{mode}", f"x_embedders.{mode}"))),
    *(Rule(f"{stream}_stream_modulations.{mode}.lin", f"{stream}_stream_modulations.{mode}.linear")
      for stream in ("early", "single") for mode in ("image", REFERENCE, "txt")),
    Rule("txt_in", "context_embedder"),
    Rule("time_in.in_layer", "timestep_embedder.linear_1"), Rule("time_in.out_layer", "timestep_embedder.linear_2"),
    Rule("final_layer.image.adaLN_modulation.1", "norm_out.linear", swapped="always"),
    Rule("final_layer.image.linear", "proj_out"),
))
"""Source: diffusers' conversion (`loaders/single_file_utils.py`)."""

TRAINED = r"^(txt_mode_blocks|mode_blocks\.image|single_transformer_blocks)\.\d+\."
ATTENTION, FEED_FORWARD = rf"{TRAINED}attn\.to_(q|k|v|out\.0)$", rf"{TRAINED}ff\.linear_(in|out)$"
MODULATION = r"_stream_modulations\.(image|txt)\.linear$"


class Flux3(Flux2Latents, TransformerFamily):
    name, title = "flux3", "FLUX 3 Image Klein"
    class_name, needs_diffusers, vae_prefix = "Flux3Transformer2DModel", "0.42", "vae."
    vae_files = ("flux2-vae.safetensors",)
    layer_names = TransformerNames(
        "flux3", "FLUX 3 Image Klein", (BASE, *numbered("TEXT", 5), *numbered("IMAGE", 5), *numbered("REFERENCE", 5),
                                        *numbered("SINGLE", 28), EXTRA), KEY_MAP,
        marker="content_mode_blocks.image.0.q_proj.weight",
        numbered=MappingProxyType({
            "txt_mode_blocks": "TEXT", "content_mode_blocks.image": "IMAGE", f"content_mode_blocks.{REFERENCE}": "REFERENCE",
            "single_blocks": "SINGLE"}),
        attention=r".*_(q|k|v)_proj|.*_attn_out", widths=frozenset({3072}), stated=("flux3", "flux-3", "flux.3"),
        reads="txt_in", written="comfyui")
    refused = MappingProxyType({"ref_time_in.in_layer.weight": DISTILLED})
    wanted = "that is not distilled (Base), whose LoRAs work with the distilled one too"
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "qwen3vl_4b", LanguageModel(QWEN3_VL, TAP), (
            "qwen3vl_4b_bf16.safetensors", "qwen3vl_4b_fp8_scaled.safetensors"))})
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, MODULATION)
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=32, alpha=32, steps=3000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0, targets="attention and feed-forward",
        source="ai-toolkit's interface: rank and alpha 32, 1e-4, 3000 steps; none is published for FLUX 3 itself")
    lora_goals = MappingProxyType({
        "quick try": replace(lora_preset, rank=16, alpha=16, steps=1000, resolution=512,
                             source="half the rank, a third of the steps and a quarter of the pixels of ai-toolkit's")})
    metadata = MappingProxyType({
        "ss_base_model_version": "flux3", "ss_v2": "False", "modelspec.architecture": "flux-3-image-klein"})

    def _recognize_folder(self, source: ModelSource) -> Recognized | None:
        config = read_object(source.path / TRANSFORMER / "config.json") or {}
        is_own = config.get("_class_name") == self.class_name
        self._require_own(source, DISTILLED if is_own and config.get("flow_map") is True else "")
        return super()._recognize_folder(source)

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        (width, channels), head = shapes["emb_in.image.weight"], shapes["single_blocks.0.norm.query_norm.scale"][0]
        return dict(
            in_channels=channels, axes_dims_rope=(head // 4,) * 4, num_layers=KEY_MAP.blocks(shapes, "txt_mode_blocks"),
            num_single_layers=KEY_MAP.blocks(shapes, "single_blocks"), attention_head_dim=head,
            num_attention_heads=width // head, joint_attention_dim=shapes["txt_in.weight"][1])

    def make_denoiser(self, shapes: Shapes) -> nn.Module:
        """Without what belongs to images that are edited."""
        from diffusers.models.transformers.transformer_flux3 import Flux3AdaLayerNorm, Flux3Transformer2DModel

        class ShiftFirst(Flux3AdaLayerNorm):
            """With the order of the original code, shift before scale."""

            def forward(self, hidden_states: Tensor, temb: Tensor) -> Tensor:
                shift, scale = self.linear(self.act_fn(temb)).chunk(2, dim=-1)
                return self.norm(hidden_states) * (1 + scale) + shift

        denoiser = super().make_denoiser(shapes)
        assert isinstance(denoiser, Flux3Transformer2DModel)
        denoiser.norm_out.__class__ = ShiftFirst
        for each in (denoiser.x_embedders, denoiser.mode_blocks, denoiser.early_stream_modulations,
                     denoiser.single_stream_modulations):
            del each[REFERENCE]
        return denoiser

    def swappable_blocks(self, denoiser: nn.Module) -> Sequence[nn.Module]:
        return [block for name in ("txt_mode_blocks", "mode_blocks.image", "single_transformer_blocks")
                for block in denoiser.get_submodule(name).children()]

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        """In training as FLUX.2's, between which and the shift of sampling recipes differ."""
        by_tokens = ShiftByLength()
        return lambda height, width: by_tokens(height * width)

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> FlowSampler:
        return FlowSampler(lambda height, width: SHIFT, self.guidance(base))

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents are tokens already."""
        image = positions(latents, STEP)

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            return denoiser(latents[chosen].flatten(2).transpose(1, 2), said["hidden"], timesteps[chosen] / 1000, image,
                            text_positions(said["hidden"]), return_dict=False)[0]
        return by_length(some, conditioning, "hidden").transpose(1, 2).unflatten(2, latents.shape[-2:])

    def checkpoint_entries(self, base: BaseModelSpec, denoiser: nn.Module, encoders: Mapping[str, nn.Module],
                           dtype: torch.dtype, zero_terminal: bool = False) -> list[Entry]:
        """With what belongs to images that are edited, as the base has it."""
        written = super().checkpoint_entries(base, denoiser, encoders, dtype, zero_terminal)
        if base.layout == "single_file":  # where everything stays that is not trained
            return [in_precision(entry, dtype) if f".{REFERENCE}." in entry.name else entry for entry in written]
        kept = {name: entry for name, entry in self.native_entries(base).items() if f".{REFERENCE}." in name}
        return [*written, *(in_precision(replace(entry, name=name), dtype) for name, entry in kept.items())]


FLUX3 = Flux3()
