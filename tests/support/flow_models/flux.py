"""FLUX.1 as dev has it; plain as schnell, without guidance."""
import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.families.text.t5 import t5_tokenizer
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel

from ..tiny import END, WIDTH, text_config
from .clip_and_t5 import T5_WIDTH, ClipAndT5, t5_config
from .flow_model import FlowModel, attention_layers, kl_vae

QKV = "to_q", "to_k", "to_v"


class Flux(FlowModel):
    name, pipeline = "flux", FluxPipeline
    files = "flux1-dev", "ae"
    releases = {"FLUX.1 dev": (FluxTransformer2DModel, dict(guidance_embeds=True)),
                "FLUX.1 schnell": (FluxTransformer2DModel, dict(guidance_embeds=False))}
    """Their configs are the class's defaults."""

    def transformer(self, plain=False):
        return FluxTransformer2DModel(num_layers=2, num_single_layers=2, num_attention_heads=1, attention_head_dim=128,
                                      in_channels=64, joint_attention_dim=T5_WIDTH, pooled_projection_dim=WIDTH,
                                      guidance_embeds=not plain)

    def vae(self):
        return kl_vae(0.3611, 0.1159)

    def text(self):
        t5 = T5EncoderModel(t5_config())
        return dict(tokenizer=CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token=END),
                    text_encoder=CLIPTextModel(text_config()), text_encoder_2=t5, tokenizer_2=t5_tokenizer())

    def plain_text(self, folder):
        return ClipAndT5(folder, two_clips=False, length=256)

    def velocity(self, denoiser, latents, sigmas, said):
        batch, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, batch, channels, height, width)
        places = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32)
        found = denoiser(packed, said["hidden"], said["pooled"], sigmas, places, torch.zeros(said["hidden"].shape[1], 3),
                         guidance=torch.ones(batch)).sample
        return FluxPipeline._unpack_latents(found, 8 * height, 8 * width, 8)

    def shift(self, height, width):
        """mu 0.5 at 256 tokens, 1.15 at 4096."""
        return math.exp(0.5 + (1.15 - 0.5) * (height // 2 * (width // 2) - 256) / (4096 - 256))

    def adapted(self, denoiser):
        """The single blocks' feed-forward is joined with their attention."""
        double = attention_layers(denoiser.transformer_blocks, ("attn",), (QKV, ("add_q_proj", "add_k_proj", "add_v_proj")),
                                  ("to_out.0", "to_add_out"))
        single = [each for number in range(len(denoiser.single_transformer_blocks)) for each in (
            [f"{number}.proj_out"], [*(f"{number}.attn.{letter}" for letter in QKV), f"{number}.proj_mlp"])]
        return [*([f"transformer_blocks.{each}" for each in group] for group in double),
                *([f"single_transformer_blocks.{each}" for each in group] for group in single)]

    def drawn(self, pipeline, said, negative, noise, **how):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
        return pipeline(prompt_embeds=said["hidden"], pooled_prompt_embeds=said["pooled"],
                        latents=pipeline._pack_latents(noise, *noise.shape), **how).images[0]


FLUX = Flux()
