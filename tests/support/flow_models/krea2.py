"""Krea 2 Raw. Turbo has the same layers; plain is the same model."""
import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from transformers import Qwen3VLConfig, Qwen3VLModel

from .flow_model import PlainText, attention_layers, each_alone
from .qwen_vae import QwenVae

TEXT_WIDTH = 40
"""ComfyUI's blocks for the text have 20 heads."""


class TwelveStates(PlainText):
    """As the pipeline reads them: it has padding between a caption and what stands behind it, which is left out here."""

    learning = {}

    def __init__(self, folder):
        self.pipeline = Krea2Pipeline.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, captions):
        states, masks = self.pipeline.get_text_hidden_states(captions, max_sequence_length=64)
        return {"hidden": [each[mask] for each, mask in zip(states, masks)]}


class Krea2(QwenVae):
    name, pipeline = "krea2", Krea2Pipeline
    files = "krea2_raw_bf16", "qwen_image_vae"
    releases = {"Krea 2": (Krea2Transformer2DModel, {})}
    """Its config is the class's defaults."""
    last = ("final_layer.linear",)
    text_marks = {"model.visual.deepstack_merger_list.0.norm.weight": torch.ones(1)}

    def transformer(self, plain=False):
        """Its modulation is zero in a fresh model."""
        model = Krea2Transformer2DModel(
            num_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=768, text_hidden_dim=TEXT_WIDTH,
            text_intermediate_size=128)
        for name, parameter in model.named_parameters():
            if name.endswith("scale_shift_table"):
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    def text(self):
        width = dict(hidden_size=TEXT_WIDTH, intermediate_size=48)
        config = Qwen3VLConfig(text_config=dict(
            **width, vocab_size=151_936, num_hidden_layers=36, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[4, 2, 2])), vision_config=dict(
            **width, depth=1, num_heads=2, out_hidden_size=TEXT_WIDTH, num_position_embeddings=16,
            deepstack_visual_indexes=[0]))
        return dict(tokenizer=qwen_tokenizer(), text_encoder=Qwen3VLModel(config))

    def plain_text(self, folder):
        return TwelveStates(folder)

    def velocity(self, denoiser, latents, sigmas, said):
        pipeline, (height, width) = Krea2Pipeline, latents.shape[-2:]
        found = []
        for latent, sigma, words in zip(latents, sigmas, each_alone(said, "hidden"), strict=True):
            packed = latent.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
            places = pipeline.prepare_position_ids(words.shape[1], height // 2, width // 2, latents.device)
            moved = denoiser(packed[None], words, sigma[None], places).sample
            found.append(moved.view(height // 2, width // 2, -1, 2, 2).permute(2, 0, 3, 1, 4).reshape(latent.shape))
        return torch.stack(found)

    def shift(self, height, width):
        """mu 0.5 at 256 tokens, 1.15 at 6400."""
        return math.exp(0.5 + (1.15 - 0.5) * (height // 2 * (width // 2) - 256) / (6400 - 256))

    def adapted(self, denoiser):
        found = attention_layers(denoiser.transformer_blocks, ("attn",), (), ("to_q", "to_k", "to_v", "to_gate", "to_out.0"))
        return [[f"transformer_blocks.{each}" for each in group] for group in found]

    def drawn(self, pipeline, said, negative, noise, guidance_scale, **how):
        """The pipeline's guidance is less by 1 than that of others, and its texts are equally long."""
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=6400)
        both = Conditioning.collated([said, negative])
        (words, others), (mask, without) = both["hidden"].split(1), both.mask("hidden").split(1)
        return pipeline(prompt_embeds=words, prompt_embeds_mask=mask, negative_prompt_embeds=others,
                        negative_prompt_embeds_mask=without, latents=pipeline._pack_latents(noise, *noise.shape),
                        guidance_scale=guidance_scale - 1, **how).images[0]


KREA2 = Krea2()
