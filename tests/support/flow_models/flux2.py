"""FLUX.2 as klein base has it; plain as dev, with guidance."""
import math

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from finetune.trainers.families.text.qwen_words import PADDING, qwen_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from ..tiny_vaes import make_vae
from .flow_model import FlowModel, PlainText, attention_layers

LAYERS, LENGTH, TEXT_WIDTH = (9, 18, 27), 512, 16


def language_model(layers):
    """Qwen3 with the vocabulary of the real one."""
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=151669, hidden_size=TEXT_WIDTH, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, rope_theta=1e6, tie_word_embeddings=True))


def token_image(tokens, latents):
    return tokens.transpose(1, 2).unflatten(2, latents.shape[-2:])


class Klein(PlainText):
    """Three hidden states side by side; captions in a chat without a thought, padded behind to 512 tokens."""

    def __init__(self, folder):
        self.learning, self.said, self.tokenizer = {}, {}, qwen_tokenizer()
        self.model = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder").requires_grad_(False).eval()

    def __call__(self, captions):
        new = {caption: self.alone(caption) for caption in set(captions) - self.said.keys()}
        self.said |= new
        return {"hidden": torch.cat([self.said[caption] for caption in captions])}

    def alone(self, caption):
        ids = self.tokenizer(
            f"<|im_start|>user\n{caption}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n").input_ids
        more = LENGTH - len(ids)
        tokens, mask = torch.tensor([ids + [PADDING] * more]), torch.tensor([[1] * len(ids) + [0] * more])
        states = self.model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.cat([states[layer] for layer in LAYERS], dim=-1)


class Flux2(FlowModel):
    name, pipeline = "flux2", Flux2KleinPipeline
    files, vae_class = ("flux-2-klein-base-4b", "flux2-vae"), AutoencoderKLFlux2
    releases = {
        "FLUX.2 klein 4B": (Flux2Transformer2DModel, dict(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False)),
        "FLUX.2 klein 9B": (Flux2Transformer2DModel, dict(
            num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288, guidance_embeds=False)),
        "FLUX.2 dev": (Flux2Transformer2DModel, {}),
    }
    """dev's config is the class's defaults."""

    def transformer(self, plain=False):
        """ComfyUI knows heads of 128 numbers alone, which plain models have."""
        head = 128 if plain else 32
        return Flux2Transformer2DModel(
            num_layers=2, num_single_layers=2, num_attention_heads=1, attention_head_dim=head,
            axes_dims_rope=(head // 4,) * 4, joint_attention_dim=len(LAYERS) * TEXT_WIDTH, guidance_embeds=plain)

    def vae(self):
        return make_vae("flux2")

    def text(self):
        return dict(tokenizer=qwen_tokenizer(), text_encoder=language_model(LAYERS[-1] + 1))

    def plain_text(self, folder):
        return Klein(folder)

    def latents(self, vae, pixels):
        raw = Flux2KleinPipeline._patchify_latents(vae.encode(pixels).latent_dist.mode())
        mean, variance = (each.view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
        return (raw - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)

    def velocity(self, denoiser, latents, sigmas, said):
        klein, words = Flux2KleinPipeline, said["hidden"]
        found = denoiser(klein._pack_latents(latents), words, sigmas, klein._prepare_latent_ids(latents),
                         klein._prepare_text_ids(words), torch.ones(len(latents))).sample
        return token_image(found, latents)

    def shift(self, height, width):
        """mu 0.5 at 256 tokens, 1.15 at 4096; tokens are latents."""
        return math.exp(0.5 + (1.15 - 0.5) * (height * width - 256) / (4096 - 256))

    def adapted(self, denoiser):
        double = attention_layers(denoiser.transformer_blocks, ("attn",), (
            ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")), ("to_out.0", "to_add_out"))
        return [*([f"transformer_blocks.{each}" for each in group] for group in double),
                *([f"single_transformer_blocks.{number}.attn.{each}"]
                  for number in range(len(denoiser.single_transformer_blocks)) for each in ("to_qkv_mlp_proj", "to_out"))]

    def drawn(self, pipeline, said, negative, noise, **how):
        """The pipeline's shift depends on the steps too."""
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        return pipeline(prompt_embeds=said["hidden"], negative_prompt_embeds=negative["hidden"], latents=noise,
                        **how).images[0]


FLUX2 = Flux2()
