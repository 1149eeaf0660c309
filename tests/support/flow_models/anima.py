"""Anima, by parts of diffusers' modular pipeline: it has no other. Plain is the same model."""
from pathlib import Path

import torch
from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from finetune.trainers.families.text.t5 import t5_tokenizer
from transformers import Qwen3Config, Qwen3Model

from ..tiny import WIDTH
from .flow_model import FolderParts, PlainText, attention_layers, each_alone
from .qwen_vae import QwenVae

FRAME = dict(in_channels=16, out_channels=16, patch_size=(1, 2, 2), rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None)
"""Of released configs."""


class Denoiser(CosmosTransformer3DModel):
    """With the text conditioner in it, where the original file has it."""

    @classmethod
    def of(cls, transformer: CosmosTransformer3DModel, conditioner: AnimaTextConditioner) -> "Denoiser":
        transformer.__class__ = cls
        transformer.add_module("llm_adapter", conditioner)
        return transformer

    @classmethod
    def from_pretrained(cls, folder, subfolder):
        return cls.of(CosmosTransformer3DModel.from_pretrained(folder, subfolder=subfolder),
                      AnimaTextConditioner.from_pretrained(folder, subfolder="text_conditioner"))

    def save_pretrained(self, folder: Path):
        conditioner = self._modules.pop("llm_adapter")
        conditioner.save_pretrained(folder.parent / "text_conditioner")
        self.__class__ = CosmosTransformer3DModel
        self.save_pretrained(folder)


def released(layers, heads, text, **adapter) -> Denoiser:
    return Denoiser.of(CosmosTransformer3DModel(num_layers=layers, num_attention_heads=heads, attention_head_dim=128,
                                                text_embed_dim=text, **FRAME), AnimaTextConditioner(**adapter))


class Parts(FolderParts):
    transformer_class, vae_class = Denoiser, AutoencoderKLQwenImage


class QwenAndIds(PlainText):
    """Last states of Qwen3, and ids of T5's tokens."""

    learning = {}

    def __init__(self, folder):
        self.words, self.pieces = qwen_tokenizer(), t5_tokenizer()
        self.model = Qwen3Model.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()

    def __call__(self, captions):
        words = [self.words(caption, return_tensors="pt").input_ids for caption in captions]
        return {"hidden": [self.model(each).last_hidden_state[0] for each in words],
                "ids": [self.pieces(caption, return_tensors="pt").input_ids[0] for caption in captions]}


class Anima(QwenVae):
    name, pipeline = "anima", Parts
    files = "anima-base", "qwen_image_vae"
    releases = {"Anima": (released, dict(layers=28, heads=16, text=1024))}
    last = "norm_out", "proj_out"

    def transformer(self, plain=False):
        return released(2, 1, WIDTH, source_dim=WIDTH, target_dim=WIDTH, model_dim=WIDTH, num_layers=2,
                        num_attention_heads=2)

    def text(self):
        config = Qwen3Config(vocab_size=151_936, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3,
                             num_attention_heads=2, num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
                             rope_parameters=dict(rope_type="default", rope_theta=1e6))
        return dict(tokenizer=qwen_tokenizer(), text_encoder=Qwen3Model(config))

    def plain_text(self, folder):
        return QwenAndIds(folder)

    def velocity(self, denoiser, latents, sigmas, said):
        found, (height, width) = [], latents.shape[-2:]
        for latent, sigma, words, pieces in zip(latents, sigmas, each_alone(said, "hidden"), each_alone(said, "ids"),
                                                strict=True):
            states = denoiser.llm_adapter(words, pieces)
            found.append(denoiser(latent[None, :, None], sigma[None], states,
                                  padding_mask=latents.new_zeros(1, 1, 8 * height, 8 * width)).sample[0, :, 0])
        return torch.stack(found)

    def shift(self, height, width):
        return 3.0

    def adapted(self, denoiser):
        found = attention_layers(denoiser.transformer_blocks, ("attn1", "attn2"), (), ("to_q", "to_k", "to_v", "to_out.0"))
        return [[f"transformer_blocks.{each}" for each in group] for group in found]

    def drawn(self, pipeline, said, negative, noise, guidance_scale, sigmas, **how):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift(1, 1))
        scheduler.set_timesteps(sigmas=sigmas)
        latents, config = noise, pipeline.vae.config
        with torch.no_grad():
            for timestep in scheduler.timesteps:
                without, found = (self.velocity(pipeline.transformer, latents, timestep[None] / 1000, each)
                                  for each in (negative, said))
                latents = scheduler.step(without + guidance_scale * (found - without), timestep, latents).prev_sample
            mean, deviation = (torch.tensor(each)[:, None, None] for each in (config.latents_mean, config.latents_std))
            pixels = pipeline.vae.decode((latents * deviation + mean).unsqueeze(2)).sample.squeeze(2)
        return VaeImageProcessor().postprocess(pixels)[0]


ANIMA = Anima()
