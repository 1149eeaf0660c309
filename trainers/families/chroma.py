"""Chroma1: FLUX.1 schnell with the distillation trained away again. Its blocks have no modulation of their own: one small
network makes that of all blocks out of the noise level. It is told by T5-XXL alone, and follows prompts by two predictions.

The denoiser has to see one token of padding behind a caption and no more of it. Captions keep their own lengths here, so
that none of diffusers' masks are needed, which act as a bias and get lost in checkpointed blocks.
"""
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..artifacts.layer_names import text as names
from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import SCALE, KeyMap, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .flux import ATTENTION, AXES, FEED_FORWARD, HEAD, UNMODULATED, packed, unpacked
from .protocol import LoraPreset, UsualSampling
from .samplers import FlowSampler
from .text import t5
from .text.encoder_kind import TextPart
from .transformer_family import Shapes, TransformerFamily, layer_choices
from .variants import Variant

APPROXIMATOR, APPROXIMATOR_LAYERS = "distilled_guidance_layer", 5
MODULATIONS = 3 * 38 + 2 * 6 * 19 + 2
"""Rows of modulation that the small network makes: of the single blocks, of the double blocks' two streams, and of the last
layer. ComfyUI makes as many for models with fewer blocks, and takes the last two for the last layer all the same."""
SAMPLING_SHIFT = math.exp(1.15)
"""ComfyUI's, at all sizes; trained is without a shift, as sd-scripts, ai-toolkit and the authors do."""
KEY_MAP = KeyMap((
    *UNMODULATED,
    *(Rule(f"{APPROXIMATOR}.{name}", f"{APPROXIMATOR}.{name}") for name in ("in_proj", "out_proj")),
    *(rule for number in range(APPROXIMATOR_LAYERS) for rule in (
        Rule(f"{APPROXIMATOR}.layers.{number}.in_layer", f"{APPROXIMATOR}.layers.{number}.linear_1"),
        Rule(f"{APPROXIMATOR}.layers.{number}.out_layer", f"{APPROXIMATOR}.layers.{number}.linear_2"),
        Rule(f"{APPROXIMATOR}.norms.{number}", f"{APPROXIMATOR}.norms.{number}", tensors=SCALE))),
))


class Chroma(TransformerFamily):
    name, title = "chroma", "Chroma"
    class_name, vae_prefix = "ChromaTransformer2DModel", "vae."
    vae_files = ("ae.safetensors",)
    layer_names = TransformerNames(
        "chroma", "Chroma", (BASE, *numbered("DOUBLE", 19), *numbered("SINGLE", 38), EXTRA), KEY_MAP,
        marker=f"{APPROXIMATOR}.norms.0.scale",
        numbered=MappingProxyType({"double_blocks": "DOUBLE", "single_blocks": "SINGLE"}),
        text=(names.t5("te1", "text_encoder"),), attention=r"single_blocks_\d+_linear[12]", widths=frozenset({3072}),
        stated=("chroma",), like="flux")
    refused = MappingProxyType(dict.fromkeys(
        ("nerf_blocks.0.norm.scale", "nerf_blocks.0.norm.weight"), "a Chroma that works on pixels, without a VAE"))
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "t5xxl", t5.T5(shortest=1, longest=512, masked=True), t5.FILES)})
    """The mask is what the model was trained with (lodestone-rock/flow, `train_chroma.py`; diffusers' pipeline). ComfyUI's
    encoder says the same of a caption's own tokens; the token of padding it adds on request (T5TokenizerOptions)."""
    variants = (
        Variant("Chroma1 Flash", "flash", guidance="none", sampling=UsualSampling(steps=16), distilled=True,
                instead="Chroma1 HD, whose LoRAs work with Flash too"),
        Variant("Chroma1", sampling=UsualSampling(guidance=4.0, steps=25)),
    )
    """Sampling: ai-toolkit's for Chroma1."""
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, r"^(x|context)_embedder$")
    """Never the small network: what it says of a noise level holds for all images."""
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0,
        source="ai-toolkit's example for Chroma: rank and alpha 16, 1e-4, 2000 steps")
    lora_goals = MappingProxyType({
        "style": replace(lora_preset, rank=32, alpha=32, steps=3000,
                         source="ai-toolkit's interface: rank and alpha 32, 1e-4, 3000 steps"),
        "quick try": replace(lora_preset, learning_rate=2e-4, steps=1000, resolution=512,
                             source="SimpleTuner's quickstart for Chroma: rank 16, 2e-4; here 1000 steps of 512 pixels"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "chroma", "ss_v2": "False", "modelspec.architecture": "chroma"})

    @property
    def capabilities(self) -> frozenset[str]:
        """T5 is left as it is: no program trains Chroma's."""
        return frozenset({"lora", "full"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        (width, inputs), (hidden, channels) = shapes["img_in.weight"], shapes[f"{APPROXIMATOR}.in_proj.weight"]
        return dict(
            in_channels=inputs, out_channels=shapes["final_layer.linear.weight"][0],
            num_layers=KEY_MAP.blocks(shapes, "double_blocks"), num_single_layers=KEY_MAP.blocks(shapes, "single_blocks"),
            attention_head_dim=HEAD, num_attention_heads=width // HEAD, joint_attention_dim=shapes["txt_in.weight"][1],
            axes_dims_rope=AXES, approximator_num_channels=channels, approximator_hidden_dim=hidden,
            approximator_layers=sum(name.startswith(f"{APPROXIMATOR}.norms.") for name in shapes))

    def make_denoiser(self, shapes: Shapes) -> nn.Module:
        from diffusers.models.embeddings import get_timestep_embedding

        denoiser = super().make_denoiser(shapes)
        inputs = cast("nn.Module", denoiser.time_text_embed)
        width, rows = cast("Tensor", inputs.mod_proj).shape[1], torch.arange(MODULATIONS, device="cpu")
        inputs.mod_proj = get_timestep_embedding(1000 * rows, width, flip_sin_to_cos=True, downscale_freq_shift=0)
        return denoiser

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> FlowSampler:
        return FlowSampler(lambda height, width: SAMPLING_SHIFT, self.guidance(base))

    def joined(self, said: Mapping[str, Conditioning]) -> Conditioning:
        return said["te1"]

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Tokens and places as in FLUX.1."""
        tokens, places = packed(latents)

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            words = torch.zeros(said["hidden"].shape[1], 3, device=latents.device)
            return denoiser(tokens[chosen], said["hidden"], timesteps[chosen] / 1000, places, words, return_dict=False)[0]
        return unpacked(by_length(some, conditioning, "hidden"), latents)


CHROMA = Chroma()
