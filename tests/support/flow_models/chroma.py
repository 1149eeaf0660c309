"""Chroma1; plain is the same model. FLUX.1's blocks, so that most is said there."""
import math

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.models.embeddings import get_timestep_embedding
from finetune.trainers.families.text.t5 import t5_tokenizer
from transformers import T5EncoderModel, T5TokenizerFast

from .clip_and_t5 import T5_WIDTH, t5_config
from .flow_model import PlainText, each_alone
from .flux import Flux


class MaskedT5(PlainText):
    """As the pipeline reads it, which lets the denoiser see one token of padding."""

    learning = {}

    def __init__(self, folder):
        self.tokenizer = T5TokenizerFast.from_pretrained(folder / "tokenizer")
        self.t5 = T5EncoderModel.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()

    def __call__(self, captions):
        tokens = self.tokenizer(captions, padding="max_length", max_length=256, return_tensors="pt")
        states, counts = self.t5(**tokens).last_hidden_state, tokens.attention_mask.sum(dim=1)
        return {"hidden": [each[:count + 1] for each, count in zip(states, counts)]}


def with_all_rows(denoiser):
    """The original code makes 344 rows of modulation, diffusers fewer where there are fewer blocks: the last two, which the
    last layer gets, are others then."""
    denoiser.time_text_embed.mod_proj = get_timestep_embedding(
        torch.arange(344) * 1000, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    return denoiser


class Chroma(Flux):
    name, pipeline = "chroma", ChromaPipeline
    files = "Chroma1-HD", "ae"
    releases = {"Chroma1": (ChromaTransformer2DModel, {})}
    """Its config is the class's defaults."""

    def transformer(self, plain=False):
        return ChromaTransformer2DModel(
            num_layers=2, num_single_layers=2, num_attention_heads=1, attention_head_dim=128, joint_attention_dim=T5_WIDTH,
            approximator_hidden_dim=48, approximator_layers=2)

    def text(self):
        return dict(text_encoder=T5EncoderModel(t5_config()), tokenizer=t5_tokenizer())

    def plain_text(self, folder):
        return MaskedT5(folder)

    def velocity(self, denoiser, latents, sigmas, said):
        (channels, height, width), found = latents.shape[1:], []
        places = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
        for latent, sigma, words in zip(latents, sigmas, each_alone(said, "hidden"), strict=True):
            packed = FluxPipeline._pack_latents(latent[None], 1, channels, height, width)
            moved = with_all_rows(denoiser)(packed, words, sigma[None], places, torch.zeros(words.shape[1], 3)).sample
            found.append(FluxPipeline._unpack_latents(moved, 8 * height, 8 * width, 8))
        return torch.cat(found)

    def shift(self, height, width):
        return 1.0

    def drawn(self, pipeline, said, negative, noise, **how):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=math.exp(1.15))
        with_all_rows(pipeline.transformer)
        masks = {f"{name}prompt_attention_mask": torch.ones(each["hidden"].shape[:2])
                 for name, each in (("", said), ("negative_", negative))}
        return pipeline(prompt_embeds=said["hidden"], negative_prompt_embeds=negative["hidden"], **masks,
                        latents=FluxPipeline._pack_latents(noise, *noise.shape), **how).images[0]


CHROMA = Chroma()
