"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): two text encoders, pooled text and size conditioning."""
from types import MappingProxyType
from typing import Mapping, Sequence

import torch
from torch import Tensor, nn

from . import latent_diffusion, loading
from .latent_diffusion import LORA_TARGETS, TEXT_LORA_TARGET
from .protocol import Conditioning, LatentFormat, LoraPreset, TextEncoders


class StableDiffusionXL:
    name = "sdxl"
    title = "Stable Diffusion XL"
    capabilities = frozenset({"lora", "text_encoder"})
    lora_targets = LORA_TARGETS
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=1500, resolution=1024, min_snr_gamma=5.0,
        text_encoder_learning_rate=0.0,
        source="diffusers README: 1e-4; kohya docs: denoiser only; min-SNR gamma 5 in the kohya GUI's SDXL presets",
    )
    metadata = MappingProxyType({
        "ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    })

    def latent_format(self, base) -> LatentFormat:
        return latent_diffusion.latent_format(base)

    def load_vae(self, base) -> nn.Module:
        return loading.load_vae(base)

    def load_text(self, base, dtype: torch.dtype) -> TextEncoders:
        """"te1" is CLIP ViT-L, "te2" OpenCLIP ViT-bigG; the second pads with "!" (token 0)."""
        return TextEncoders(
            self.load_tokenizers(base),
            {
                "te1": loading.load_text_encoder(base, "text_encoder", dtype, "conditioner.embedders.0.transformer."),
                "te2": loading.load_text_encoder(
                    base, "text_encoder_2", dtype, "conditioner.embedders.1.model.", projection=True
                ),
            },
        )

    def load_tokenizers(self, base) -> Mapping[str, object]:
        return {
            "te1": loading.load_tokenizer(base, "tokenizer", "<|endoftext|>"),
            "te2": loading.load_tokenizer(base, "tokenizer_2", "!"),
        }

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
        """Penultimate token states of both encoders side by side, and the second's projected end-of-text state."""
        first = latent_diffusion.hidden_states(text, "te1", captions)
        second = latent_diffusion.hidden_states(text, "te2", captions)
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"hidden": hidden, "pooled": second.text_embeds}

    def token_count(self, tokenizers: Mapping[str, object], caption: str) -> tuple[int, int]:
        return latent_diffusion.token_count(tokenizers, caption)

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning,
                sizes: Tensor) -> Tensor:
        added = {"text_embeds": conditioning["pooled"], "time_ids": sizes.to(conditioning["pooled"])}
        return denoiser(latents, timesteps, conditioning["hidden"], added_cond_kwargs=added).sample

    def denoiser_key(self, denoiser: nn.Module, module_name: str) -> str:
        return latent_diffusion.original_key(denoiser, module_name)

    def text_lora_target(self, encoder_name: str, encoder: nn.Module) -> str:
        """The last layer of the first encoder is passed over: SDXL reads the one before it."""
        if encoder_name == "te1":
            return rf"layers\.(?!{encoder.config.num_hidden_layers - 1}\.)\d+\.({TEXT_LORA_TARGET})"
        return TEXT_LORA_TARGET

    def text_key(self, encoder_name: str, module_name: str) -> str:
        return latent_diffusion.text_key(encoder_name, module_name)


SDXL = StableDiffusionXL()
