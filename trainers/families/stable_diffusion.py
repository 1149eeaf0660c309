"""Stable Diffusion 1.x and 2.x: one text encoder, cross-attention on its token states."""
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..memory.placement import Place, assign
from ..spec import BaseModelSpec
from . import checkpoint_writing
from .conditioning import Conditioning
from .latent_diffusion import LatentDiffusion
from .protocol import LoraPreset, TextEncoders
from .text import clip

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedTokenizerBase

V_SPREAD = 0.09
"""Standard deviation of the bias from which ComfyUI infers v-prediction (its `supported_models.py`)."""
SAID = {"epsilon": "eps", "v_prediction": "v_prediction"}
"""What the host's ModelSamplingDiscrete calls them."""


@dataclass(frozen=True)
class StableDiffusion(LatentDiffusion):
    """Both generations differ in data only: where a single file keeps the text encoder and how captions are padded."""

    name: str
    title: str
    text_prefix: str
    pad_token: str
    own_layer: int
    """The layer whose states are read, counted from the end of the original encoder."""
    lora_preset: LoraPreset
    metadata: Mapping[str, str]

    def base_metadata(self, base: BaseModelSpec) -> Mapping[str, str]:
        version = self.metadata["ss_base_model_version"] + ("_v" if base.prediction_type == "v_prediction" else "")
        return {**self.metadata, "ss_base_model_version": version, "modelspec.implementation": "diffusers"}

    def native_resolution(self, base: BaseModelSpec) -> int:
        """Both sizes of SD 2.x have the same shapes; only the one for 768 predicts v."""
        return 512 if self.own_layer == 2 and base.prediction_type == "epsilon" else super().native_resolution(base)

    def load_text(self, base: BaseModelSpec, dtype: torch.dtype, only: Collection[str] | None = None,
                  place: Place = assign) -> TextEncoders:
        wanted = only is None or "te" in only
        encoders = {"te": clip.load_clip(base, "text_encoder", dtype, place=place)} if wanted else {}
        return TextEncoders(self.load_tokenizers(base), encoders)

    def load_tokenizers(self, base: BaseModelSpec) -> Mapping[str, "PreTrainedTokenizerBase"]:
        return {"te": clip.load_tokenizer(base, "tokenizer", self.pad_token)}

    @property
    def text_places(self) -> Mapping[str, tuple[str, str]]:
        return {"te": ("text_encoder", self.text_prefix)}

    def idle_layers(self, encoders: Mapping[str, nn.Module]) -> checkpoint_writing.Pieces:
        """ComfyUI's SD 2.x has all layers of the original encoder, although it reads the penultimate one."""
        return checkpoint_writing.idle_layers(self._text_pieces(encoders), self.own_layer - 1) if self.own_layer > 1 else {}

    def prediction_note(self, base: BaseModelSpec, denoiser: "UNet2DConditionModel") -> str | None:
        """ComfyUI takes every SD 1.x for epsilon, and an SD 2.x for v-prediction by the spread of a bias."""
        bias = dict(denoiser.named_parameters()).get("up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias")
        v = self.own_layer == 2 and bias is not None and float(bias.detach().float().std(unbiased=False)) > V_SPREAD
        found = "v_prediction" if v else "epsilon"
        if found == base.prediction_type:
            return None
        return (f"ComfyUI will take this checkpoint for a model that predicts {SAID[found]}, because files of this family "
                f"cannot say otherwise; put ModelSamplingDiscrete with {SAID[base.prediction_type]} behind its loader")

    def encode_with(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """SD 2.x's penultimate layer is the last one here: its encoder is stored without the layer after it."""
        output, skipped = clip.states(text, encoder, captions), text.clip_skip - self.own_layer
        if skipped <= 0:
            return Conditioning({"hidden": output.last_hidden_state})
        return Conditioning({"hidden": clip.final_norm(text.encoders[encoder])(output.hidden_states[-1 - skipped])})

    def predict(self, denoiser: "UNet2DConditionModel", latents: Tensor, timesteps: Tensor,
                conditioning: Conditioning) -> Tensor:
        return denoiser(latents, timesteps, conditioning["hidden"]).sample


SD1 = StableDiffusion(
    name="sd1",
    title="Stable Diffusion 1.x",
    text_prefix="cond_stage_model.transformer.",
    pad_token="<|endoftext|>",
    own_layer=1,
    lora_preset=LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=1500, resolution=512, min_snr_gamma=5.0,
        text_encoder_learning_rate=0.0,
        source="diffusers README: 1e-4 and SNR gamma 5; kohya docs: about 1600 steps, alpha equal to the rank or half",
    ),
    # A1111 takes any version but sdxl_… for SD 1.x; Lora-Manager knows "sd_1.5" but not kohya's own "sd_v1".
    metadata=MappingProxyType({
        "ss_base_model_version": "sd_1.5", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1",
    }),
)

SD2 = StableDiffusion(
    name="sd2",
    title="Stable Diffusion 2.x",
    text_prefix="cond_stage_model.model.",
    pad_token="!",
    own_layer=2,
    lora_preset=LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=1500, resolution=768, min_snr_gamma=5.0,
        text_encoder_learning_rate=0.0,
        source="kohya docs for SD 1.5 and 2.x: 1e-4, about 1600 steps; min-SNR gamma 5 everywhere",
    ),
    metadata=MappingProxyType({
        "ss_base_model_version": "sd_v2", "ss_v2": "True", "modelspec.architecture": "stable-diffusion-v2-768-v",
    }),
)
