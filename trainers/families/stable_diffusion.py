"""Stable Diffusion 1.x and 2.x: one text encoder, cross-attention on its token states."""
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Mapping, Sequence

import torch
from torch import Tensor, nn

from . import latent_diffusion, loading
from .latent_diffusion import LORA_TARGETS, TEXT_LORA_TARGET
from .protocol import Conditioning, LatentFormat, LoraPreset, TextEncoders


@dataclass(frozen=True)
class StableDiffusion:
    """Both generations differ in data only: where a single file keeps the text encoder and how captions are padded."""

    name: str
    title: str
    text_prefix: str
    pad_token: str
    lora_preset: LoraPreset
    metadata: Mapping[str, str]
    capabilities: frozenset[str] = frozenset({"lora", "text_encoder"})
    lora_targets: Mapping[str, str] = field(default_factory=lambda: LORA_TARGETS)

    def latent_format(self, base) -> LatentFormat:
        return latent_diffusion.latent_format(base)

    def load_vae(self, base) -> nn.Module:
        return loading.load_vae(base)

    def load_text(self, base, dtype: torch.dtype) -> TextEncoders:
        encoder = loading.load_text_encoder(base, "text_encoder", dtype, self.text_prefix)
        return TextEncoders(self.load_tokenizers(base), {"te": encoder})

    def load_tokenizers(self, base) -> Mapping[str, object]:
        return {"te": loading.load_tokenizer(base, "tokenizer", self.pad_token)}

    def load_denoiser(self, base, dtype: torch.dtype) -> nn.Module:
        return loading.load_unet(base, dtype)

    def alphas_cumprod(self, base) -> Tensor:
        return loading.load_alphas_cumprod(base)

    def sampler(self, base):
        return loading.load_sampler(base)

    def encode_pictures(self, vae: nn.Module, pixels: Tensor, latent_format: LatentFormat) -> Tensor:
        return latent_diffusion.encode_pictures(vae, pixels, latent_format)

    def decode_latents(self, vae: nn.Module, latents: Tensor, latent_format: LatentFormat) -> Tensor:
        return latent_diffusion.decode_latents(vae, latents, latent_format)

    def encode_captions(self, text: TextEncoders, captions: Sequence[str]) -> Conditioning:
        """SD 2.x's penultimate layer is the last one here: its encoder is stored without the layer after it."""
        return {"hidden": latent_diffusion.hidden_states(text, "te", captions).last_hidden_state}

    def token_count(self, tokenizers: Mapping[str, object], caption: str) -> tuple[int, int]:
        return latent_diffusion.token_count(tokenizers, caption)

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning,
                sizes: Tensor) -> Tensor:
        return denoiser(latents, timesteps, conditioning["hidden"]).sample

    def denoiser_key(self, denoiser: nn.Module, module_name: str) -> str:
        return latent_diffusion.diffusers_key(module_name)

    def text_lora_target(self, encoder_name: str, encoder: nn.Module) -> str:
        return TEXT_LORA_TARGET

    def text_key(self, encoder_name: str, module_name: str) -> str:
        return latent_diffusion.text_key(encoder_name, module_name)


SD1 = StableDiffusion(
    name="sd1",
    title="Stable Diffusion 1.x",
    text_prefix="cond_stage_model.transformer.",
    pad_token="<|endoftext|>",
    lora_preset=LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=1500, resolution=512, min_snr_gamma=5.0,
        text_encoder_learning_rate=0.0,
        source="diffusers README: 1e-4 and SNR gamma 5; kohya docs: about 1600 steps, alpha equal to the rank or half",
    ),
    # A1111 takes any version but sdxl_… for SD 1.x; Lora-Manager knows "sd_1.5" but not kohya's own "sd_v1".
    metadata=MappingProxyType({
        "ss_base_model_version": "sd_1.5", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora",
    }),
)

SD2 = StableDiffusion(
    name="sd2",
    title="Stable Diffusion 2.x",
    text_prefix="cond_stage_model.model.",
    pad_token="!",
    lora_preset=LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=1500, resolution=768, min_snr_gamma=5.0,
        text_encoder_learning_rate=0.0,
        source="kohya docs for SD 1.5 and 2.x: 1e-4, about 1600 steps; min-SNR gamma 5 everywhere",
    ),
    metadata=MappingProxyType({
        "ss_base_model_version": "sd_v2", "ss_v2": "True", "modelspec.architecture": "stable-diffusion-v2-768-v/lora",
    }),
)
