"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): two text encoders, pooled text and size conditioning."""
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..artifacts.layer_names.unet import original_unet_name
from ..artifacts.tensor_files import Entry, entry_of
from ..data.images.buckets import Crop
from ..memory.placement import Place, assign
from ..spec import BaseModelSpec
from .conditioning import Conditioning
from .latent_diffusion import LatentDiffusion
from .protocol import LoraPreset, TextEncoders
from .sizes import unet_shape
from .text import clip

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

V_MARKER, ZERO_MARKER = "v_pred", "ztsnr"


class StableDiffusionXL(LatentDiffusion):
    name = "sdxl"
    title = "Stable Diffusion XL"
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=1500, resolution=1024, min_snr_gamma=5.0,
        text_encoder_learning_rate=0.0,
        source="diffusers README: 1e-4; kohya docs: denoiser only; min-SNR gamma 5 in the kohya GUI's SDXL presets",
    )
    embedding_keys = MappingProxyType({"te1": "clip_l", "te2": "clip_g"})
    text_places = MappingProxyType({
        "te1": ("text_encoder", "conditioner.embedders.0.transformer."),
        "te2": ("text_encoder_2", "conditioner.embedders.1.model."),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
    })

    def base_metadata(self, base: BaseModelSpec) -> Mapping[str, str]:
        return {**self.metadata, "modelspec.implementation": "https://github.com/Stability-AI/generative-models"}

    def load_text(self, base: BaseModelSpec, dtype: torch.dtype, only: Collection[str] | None = None,
                  place: Place = assign) -> TextEncoders:
        """"te1" is CLIP ViT-L, "te2" OpenCLIP ViT-bigG; the second pads with "!" (token 0)."""
        return TextEncoders(self.load_tokenizers(base), {
            name: clip.load_clip(base, self.text_places[name][0], dtype, name == "te2", place)
            for name in self.text_places if only is None or name in only})

    def load_tokenizers(self, base: BaseModelSpec) -> Mapping[str, "PreTrainedTokenizerBase"]:
        return {
            "te1": clip.load_tokenizer(base, "tokenizer", "<|endoftext|>"),
            "te2": clip.load_tokenizer(base, "tokenizer_2", "!"),
        }

    def encode_with(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """Penultimate token states, and of the second encoder the projected end-of-text state."""
        output = clip.states(text, encoder, captions)
        hidden = Conditioning({"hidden": output.hidden_states[-1 - max(text.clip_skip - 1, 1)]})
        return hidden | Conditioning({"pooled": output.text_embeds}) if encoder == "te2" else hidden

    def joined(self, said: Mapping[str, Conditioning]) -> Conditioning:
        """Token states of both encoders side by side."""
        hidden = torch.cat([said["te1"]["hidden"], said["te2"]["hidden"]], dim=-1)
        return Conditioning({"hidden": hidden, "pooled": said["te2"]["pooled"]})

    def crop_conditioning(self, crops: Sequence[Crop]) -> Conditioning:
        """Section 2.2 of the paper: "sizes" float [batch, 6], in pixels."""
        return Conditioning({"sizes": torch.tensor([crop.sizes for crop in crops], dtype=torch.float32)})

    def predict(self, denoiser: "UNet2DConditionModel", latents: Tensor, timesteps: Tensor,
                conditioning: Conditioning) -> Tensor:
        pooled = conditioning["pooled"]
        added = {"text_embeds": pooled, "time_ids": conditioning["sizes"].to(pooled)}
        return denoiser(latents, timesteps, conditioning["hidden"], added_cond_kwargs=added).sample

    def denoiser_key(self, denoiser: "UNet2DConditionModel", module_name: str) -> str:
        """kohya writes the original names for SDXL."""
        return "lora_unet_" + original_unet_name(module_name, *unet_shape(denoiser.config)).replace(".", "_")

    def marked(self, entries: list[Entry], base: BaseModelSpec, zero_terminal: bool) -> list[Entry]:
        """ComfyUI takes SDXL for v-prediction by an empty tensor of that name, with pure noise at the end by another."""
        zero_terminal = zero_terminal or base.zero_terminal_snr
        wanted = [V_MARKER, ZERO_MARKER] if zero_terminal else [V_MARKER]
        if base.prediction_type != "v_prediction":
            return [entry for entry in entries if entry.name not in (V_MARKER, ZERO_MARKER)]
        missing = set(wanted) - {entry.name for entry in entries}
        return [*entries, *(entry_of(name, (torch.zeros(0),)) for name in wanted if name in missing)]

    def text_lora_target(self, encoder_name: str, encoder: "PreTrainedModel") -> str:
        """The last layer of the first encoder is passed over: SDXL reads the one before it."""
        if encoder_name == "te1":
            return rf"layers\.(?!{encoder.config.num_hidden_layers - 1}\.)\d+\.({clip.LORA_TARGET})"
        return clip.LORA_TARGET


SDXL = StableDiffusionXL()
