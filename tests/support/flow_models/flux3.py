"""FLUX 3 Image Klein Base, by parts of diffusers' modular pipeline: it has no other."""
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.modular_pipelines.flux3.before_denoise import Flux3TextRoPEInputsStep, _prepare_image_ids
from diffusers.modular_pipelines.flux3.encoders import Flux3TextEncoderStep
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from .flow_model import FlowModel, FolderParts, PlainText, attention_layers
from .flux2 import FLUX2, TEXT_WIDTH, token_image

STATES, SCALE, SHIFT = 8, 0.5, 6.93


class Parts(FolderParts):
    transformer_class, vae_class = Flux3Transformer2DModel, AutoencoderKLFlux2


class QwenVl(PlainText):
    """Eight hidden states side by side, of captions one by one."""

    def __init__(self, folder):
        self.learning, self.said = {}, {}
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()
        self.processor = SimpleNamespace(tokenizer=qwen_tokenizer(), apply_chat_template=lambda messages, **how: (
            f"<|im_start|>user\n{messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"))

    def __call__(self, captions):
        new = {caption: self.alone(caption) for caption in set(captions) - self.said.keys()}
        self.said |= new
        return {"hidden": torch.cat([self.said[caption] for caption in captions])}

    def alone(self, caption):
        return Flux3TextEncoderStep._get_qwen3_vl_prompt_embeds(self.model, self.processor, caption)


class Flux3(FlowModel):
    name, pipeline = "flux3", Parts
    files, vae_class = ("flux-3-image-klein-base", "flux2-vae"), AutoencoderKLFlux2
    text_marks = {"model.visual.deepstack_merger_list.0.norm.weight": torch.ones(1)}
    releases = {"FLUX 3 Image Klein": (Flux3Transformer2DModel, {})}
    """The config is the class's defaults."""

    def transformer(self, plain=False):
        return Flux3Transformer2DModel(num_layers=2, num_single_layers=2, num_attention_heads=2, attention_head_dim=16,
                                       axes_dims_rope=(4,) * 4, joint_attention_dim=STATES * TEXT_WIDTH)

    def vae(self):
        return FLUX2.vae()

    def text(self):
        width = dict(hidden_size=TEXT_WIDTH, intermediate_size=24)
        config = Qwen3VLConfig(tie_word_embeddings=True, text_config=dict(
            **width, vocab_size=151669, num_hidden_layers=33, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[2, 1, 1])), vision_config=dict(
            **width, depth=1, num_heads=2, out_hidden_size=TEXT_WIDTH, num_position_embeddings=16,
            deepstack_visual_indexes=[0]))
        return dict(text_encoder=Qwen3VLForConditionalGeneration(config))

    def plain_text(self, folder):
        return QwenVl(folder)

    def latents(self, vae, pixels):
        return FLUX2.latents(vae, pixels)

    def velocity(self, denoiser, latents, sigmas, said):
        words = said["hidden"]
        return token_image(denoiser(
            latents.flatten(2).transpose(1, 2), words, sigmas, _prepare_image_ids(*latents.shape[-2:], SCALE),
            Flux3TextRoPEInputsStep._prepare_text_ids(words)).sample, latents)

    def shift(self, height, width):
        return FLUX2.shift(height, width)

    def adapted(self, denoiser):
        """But those of reference images."""
        found = attention_layers(denoiser, ("attn",), (), ("to_q", "to_k", "to_v", "to_out.0"))
        return [each for each in found if "image_cond" not in each[0]]

    def drawn(self, pipeline, said, negative, noise, guidance_scale, sigmas, **how):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
        scheduler.set_timesteps(sigmas=sigmas)
        latents = noise
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                without, found = (self.velocity(pipeline.transformer, latents, timestep[None] / 1000, each)
                                  for each in (negative, said))
                latents = scheduler.step(without + guidance_scale * (found - without), timestep, latents).prev_sample
            mean, variance = (each.view(1, -1, 1, 1) for each in (pipeline.vae.bn.running_mean, pipeline.vae.bn.running_var))
            raw = latents * torch.sqrt(variance + pipeline.vae.config.batch_norm_eps) + mean
            pixels = pipeline.vae.decode(torch.nn.functional.pixel_shuffle(raw, 2)).sample
        return VaeImageProcessor().postprocess(pixels)[0]


FLUX3 = Flux3()
