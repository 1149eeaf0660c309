"""Qwen-Image. All its releases have the same layers; plain is the same model."""
import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from transformers import Qwen2Config, Qwen2Model

from ..tiny import WIDTH
from .flow_model import PlainText, attention_layers, each_alone
from .qwen_vae import QwenVae

SCHEDULE = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192,
                shift_terminal=0.02)
"""What the scheduler's config says."""


class LastStates(PlainText):
    """As the pipeline reads them, of each caption alone."""

    learning = {}

    def __init__(self, folder):
        self.pipeline = QwenImagePipeline.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, captions):
        return {"hidden": [self.pipeline.encode_prompt(caption)[0][0] for caption in captions]}


class QwenImage(QwenVae):
    name, pipeline = "qwen_image", QwenImagePipeline
    files = "qwen_image_bf16", "qwen_image_vae"
    releases = {"Qwen-Image": (QwenImageTransformer2DModel, {})}
    """Its config is the class's defaults."""

    def transformer(self, plain=False):
        return QwenImageTransformer2DModel(num_layers=2, attention_head_dim=128, num_attention_heads=1,
                                           joint_attention_dim=WIDTH)

    def text(self):
        """Qwen2.5-VL reads text as Qwen2 does."""
        config = Qwen2Config(vocab_size=151_936, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
                             num_attention_heads=1, num_key_value_heads=1, head_dim=128, rope_theta=1e6)
        return dict(tokenizer=qwen_tokenizer(), text_encoder=Qwen2Model(config))

    def plain_text(self, folder):
        return LastStates(folder)

    def velocity(self, denoiser, latents, sigmas, said):
        (channels, height, width), found = latents.shape[1:], []
        for latent, sigma, words in zip(latents, sigmas, each_alone(said, "hidden"), strict=True):
            packed = QwenImagePipeline._pack_latents(latent[None, None], 1, channels, height, width)
            moved = denoiser(packed, words, timestep=sigma[None], img_shapes=[[(1, height // 2, width // 2)]]).sample
            found.append(QwenImagePipeline._unpack_latents(moved, 8 * height, 8 * width, 8)[:, :, 0])
        return torch.cat(found)

    def shift(self, height, width):
        """mu 0.5 at 256 tokens, 0.9 at 8192."""
        return math.exp(0.5 + (0.9 - 0.5) * (height // 2 * (width // 2) - 256) / (8192 - 256))

    def adapted(self, denoiser):
        """In the last block no layer that only the text's further way depends on."""
        found = attention_layers(denoiser.transformer_blocks, ("attn",), (), (
            "to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_out.0", "to_add_out"))
        idle = [["1.attn.add_q_proj"], ["1.attn.to_add_out"]]
        return [[f"transformer_blocks.{each}" for each in group] for group in found if group not in idle]

    def drawn(self, pipeline, said, negative, noise, guidance_scale, sigmas, **how):
        """By its scheduler; the pipeline itself makes guided velocities as long as the others, which ComfyUI does not."""
        scheduler, tokens = FlowMatchEulerDiscreteScheduler(**SCHEDULE), noise.shape[-2] // 2 * (noise.shape[-1] // 2)
        scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens, 256, 8192, 0.5, 0.9))
        latents = noise
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                without, guided = (self.velocity(pipeline.transformer, latents, timestep[None] / 1000, each)
                                   for each in (negative, said))
                velocity = without + guidance_scale * (guided - without)
                latents = scheduler.step(velocity, timestep, latents).prev_sample
            mean, deviation = (torch.tensor(each)[:, None, None, None] for each in (
                pipeline.vae.config.latents_mean, pipeline.vae.config.latents_std))
            return pipeline.image_processor.postprocess(
                pipeline.vae.decode(latents[:, :, None] * deviation + mean).sample[:, :, 0])[0]


QWEN_IMAGE = QwenImage()
