"""Z-Image and Z-Image Turbo (Tongyi-MAI 2025, arXiv:2511.22699): one stream of blocks for text and image together, behind a
few for each alone, told by a language model. The same layers as in Lumina 2 (Qin et al. 2025, arXiv:2503.21758), of which
it is a relative, but for the modulation."""
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import NORM, WHOLE, KeyMap, Rows, Rule
from ..artifacts.layer_names.transformer import TransformerNames
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .protocol import LoraPreset, UsualSampling
from .text import taps
from .text.encoder_kind import TextPart
from .text.language_model import QWEN3, LanguageModel
from .transformer_family import Shapes, TransformerFamily
from .variants import Variant

HEAD, AXES = 128, (32, 48, 48)
"""Width of an attention head, and its parts that are turned by a token's position: (word or image, row, column). Heads of
small models are cut in proportion."""
POSITIONS = (16384, 1024, 1024)
"""So many positions on each axis have a place in the table that is made of them: more than captions and images have."""
FILLED = 32
"""The denoiser fills captions and images up to a multiple of so many tokens with learned ones."""
SHIFT = 3.0
"""ComfyUI samples with it, and SimpleTuner trains with it."""


def _same(*names: str, **how) -> tuple[Rule, ...]:
    """Tensors that have one name everywhere."""
    return tuple(Rule(name, name, **how) for name in names)


def _blocks(kind: str) -> tuple[Rule, ...]:
    """One of the kinds of blocks; all have the same layers."""
    block = f"{kind}.{{}}."
    attention = f"{block}attention."
    return (
        Rule(f"{attention}qkv", f"{attention}to_qkv", tuple(Rows(f"{attention}to_{each}") for each in "qkv")),
        Rule(f"{attention}out", f"{attention}to_out.0"),
        Rule(f"{attention}q_norm", f"{attention}norm_q", tensors=NORM),
        Rule(f"{attention}k_norm", f"{attention}norm_k", tensors=NORM),
        *_same(*(f"{block}feed_forward.w{number}" for number in (1, 2, 3)), f"{block}adaLN_modulation.0"),
        *_same(*(f"{block}{part}_norm{number}" for part in ("attention", "ffn") for number in (1, 2)), tensors=NORM),
    )


KEY_MAP = KeyMap((
    *_blocks("noise_refiner"), *_blocks("context_refiner"), *_blocks("layers"),
    Rule("x_embedder", "all_x_embedder.2-1"),
    Rule("final_layer.linear", "all_final_layer.2-1.linear"),
    Rule("final_layer.adaLN_modulation.1", "all_final_layer.2-1.adaLN_modulation.1"),
    *_same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1"), *_same("cap_embedder.0", tensors=NORM),
    *_same("x_pad_token", "cap_pad_token", tensors=WHOLE),
))
"""Sources: ComfyUI's class (`comfy/ldm/lumina/model.py`), whose names checkpoints have, and diffusers'; "2-1" says that
patches are 2 × 2 latents of one image."""

ATTENTION, FEED_FORWARD = r"attention\.(to_qkv|to_out\.0)$", r"feed_forward\.w[123]$"
MAIN, MODULATION = r"^layers\.\d+\.", r"adaLN_modulation\.0$"


class ZImage(TransformerFamily):
    name, title = "z_image", "Z-Image"
    class_name, needs_diffusers, vae_prefix = "ZImageTransformer2DModel", "0.36", "vae."
    vae_files = ("ae.safetensors",)
    layer_names = TransformerNames(
        "z_image", "Z-Image", (BASE, *numbered("NOISE", 2), *numbered("CONTEXT", 2), *numbered("LAYER", 30), EXTRA), KEY_MAP,
        marker="noise_refiner.0.adaLN_modulation.0.weight",  # in Lumina 2 a SiLU stands before it, so that it is number 1
        numbered=MappingProxyType({"noise_refiner": "NOISE", "context_refiner": "CONTEXT", "layers": "LAYER"}),
        absent=r"context_refiner\.\d+\.adaLN_modulation\.0", widths=frozenset({3840}),
        stated=("z_image", "z-image", "zimage"), shared=True, written="comfyui", reads="cap_embedder.1")
    refused = MappingProxyType({
        "siglip_embedder.0.weight": "a Z-Image that is given images besides the caption",
        "ZImageOmniPipeline": "a Z-Image that is given images besides the caption",
        "dec_net.cond_embed.weight": "a Z-Image that works on pixels, without a VAE"})
    overflows = True
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "qwen3_4b", LanguageModel(QWEN3, taps.Z_IMAGE), ("qwen_3_4b.safetensors",))})
    variants = (
        Variant("Z-Image Turbo", r"(?<!de)(?<!de-)turbo", guidance="none", sampling=UsualSampling(steps=8), distilled=True,
                instead="Z-Image (Base), whose LoRAs work with Turbo too",
                assistant="ostris publishes zimage_turbo_training_adapter"),
        Variant("Z-Image Base", sampling=UsualSampling(guidance=4.0, steps=28)),
    )
    lora_targets = MappingProxyType({
        "attention": f"{MAIN}{ATTENTION}",
        "attention and feed-forward": f"{MAIN}({ATTENTION}|{FEED_FORWARD})",
        "all with convolutions": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    })
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=32, alpha=32, steps=3000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0,
        source="ai-toolkit's interface: rank and alpha 32, 1e-4, 3000 steps; musubi-tuner's documentation for Z-Image: rank "
               "32, 1e-4")
    lora_goals = MappingProxyType({
        "subject": replace(lora_preset, rank=4, alpha=4, steps=500, batch_size=4,
                           source="diffusers' DreamBooth README for Z-Image: 1e-4, 500 steps of 4 images of 1024 pixels, "
                                  "with its script's rank of 4"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "zimage", "ss_v2": "False", "modelspec.architecture": "z-image"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        (width, patch), head = shapes["x_embedder.weight"], shapes["layers.0.attention.q_norm.weight"][0]
        return dict(
            dim=width, n_heads=width // head, n_kv_heads=width // head, in_channels=patch // self.patch**2,
            n_layers=KEY_MAP.blocks(shapes, "layers"), n_refiner_layers=KEY_MAP.blocks(shapes, "noise_refiner"),
            cap_feat_dim=shapes["cap_embedder.1.weight"][1], axes_dims=[each * head // HEAD for each in AXES],
            axes_lens=list(POSITIONS))

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        return lambda height, width: SHIFT

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's time goes from noise to image and its velocity with it: both are turned round. Captions are given
        without padding; those that it fills up to one length go together."""
        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            captions = [words[:length] for words, length in zip(said["hidden"], said.lengths("hidden"))]
            images = list(latents[chosen].unsqueeze(2))
            found = denoiser(images, 1 - timesteps[chosen] / 1000, captions, return_dict=False)[0]
            return -torch.stack(found).squeeze(2)
        return by_length(some, conditioning, "hidden", FILLED)


Z_IMAGE = ZImage()
