"""How the demo flow base is trained: recipe, and what its VAE and its denoiser minimize. The loop is the demo base's.

Shapes: B images in a batch, S their side in pixels, s = S / 8 the side of their latents, T tokens.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from demo_base_training import (
    VOCABULARY,
    Schedule,
    Worker,
    build_text_encoder,
    caption_tokens,
    sample_captioned,
    spread,
    through_latents,
    train,
    train_reconstruction,
)
from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.training_utils import EMAModel
from emoji_images import EmojiImages
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 16
SCALE, SHIFT = 1.5305, 0.0609  # as in SD3: the denoiser sees (latent - SHIFT) * SCALE
DECODER_NOISE = 0.1  # standard deviations added to latents while the decoder learns alone: what a denoiser leaves behind
ENCODER_PART = 0.5  # of the VAE's minutes; the decoder learns alone in the rest
PATCH = 2
HEAD = 64  # the host reads the number of layers off the width: both the layers and the heads are width / 64
TOKENS = 77  # ComfyUI gives the denoiser all of them, padding included
SHORT = 20  # tokens of most training steps: the longest caption has 17, and the image is 16
TOKENS_PART, TOKENS_EVERY = 0.15, 12  # all tokens in this last part of the time, and in one of so many steps before it
SIGMA_MEAN, SIGMA_STD = 0.4, 1.2  # of the sigmas' logits. Sampled with SD3's shift of 3, half the steps are above 0.75


@dataclass(frozen=True)
class FlowRecipe:
    """Architecture and training settings. Batches are per process and step."""
    size: int = 64
    vae_widths: tuple[int, ...] = (32, 64, 128, 128)
    vae_groups: int = 8
    vae_batch: int = 12
    vae_schedule: Schedule = Schedule(peak=1e-3, warmup_steps=60, held=0.3)
    decoder_schedule: Schedule = Schedule(peak=4e-4, warmup_steps=20, held=0.0)
    layers: int = 4
    positions: int = 64  # patches on a side of the largest image
    text_width: int = 128
    text_layers: int = 3  # the denoiser sees the output of the last but one
    captions: int = 64
    noise_levels: int = 2  # noised copies of each captioned image: the text encoder's work is shared between them
    flow_schedule: Schedule = Schedule(peak=1e-3, warmup_steps=200, held=0.4)
    core_weight: float = 6.0

    def build_vae(self) -> AutoencoderKL:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1,
            block_out_channels=self.vae_widths, norm_num_groups=self.vae_groups, latent_channels=LATENT_CHANNELS,
            sample_size=self.size, scaling_factor=SCALE, shift_factor=SHIFT, use_quant_conv=False,
            use_post_quant_conv=False)

    def build_transformer(self, context: int, pooled: int) -> SD3Transformer2DModel:
        """context, pooled: width of the text, per token and as a whole."""
        return SD3Transformer2DModel(
            sample_size=PATCH * self.positions, patch_size=PATCH, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
            num_layers=self.layers, num_attention_heads=self.layers, attention_head_dim=HEAD,
            caption_projection_dim=HEAD * self.layers, joint_attention_dim=context, pooled_projection_dim=pooled,
            pos_embed_max_size=self.positions, qk_norm="rms_norm")

    def build_text_encoder(self, vocabulary: int = VOCABULARY, attention: str = "eager") -> CLIPTextModel:
        return build_text_encoder(self.text_width, self.text_layers, vocabulary, attention)


def start_from(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take over what has the same name and shape; the rest keeps its random values."""
    own = model.state_dict()
    model.load_state_dict({name: weights[name].to(own[name].dtype) for name in own.keys() & weights.keys()
                           if weights[name].shape == own[name].shape}, strict=False)


@torch.no_grad()
def encode_mode(vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """uint8 [N, S, S, 3] → [N, 16, s, s]: the most likely latents, not scaled."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return torch.cat([vae.encode(batch.to(vae.device) / 127.5 - 1).latent_dist.mode() for batch in images.split(32)])


@torch.no_grad()
def standardize(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make (latent - SHIFT) * SCALE of mean 0 and standard deviation 1 per channel. mean, std: [16], before.

    There are no 1 × 1 convolutions beside the latents as in SD 1.x, so the map goes into the 3 × 3 ones. At the border
    the decoder's pads with zeros and the map is not exact there: the decoder has to learn a little more afterwards.
    """
    scale = 1 / (std * SCALE)
    into, out_of = vae.encoder.conv_out, vae.decoder.conv_in
    into.weight[:LATENT_CHANNELS] *= scale.view(-1, 1, 1, 1)
    into.bias[:LATENT_CHANNELS] = (into.bias[:LATENT_CHANNELS] - mean) * scale + SHIFT
    into.bias[LATENT_CHANNELS:] += 2 * scale.log()  # the other half is the logarithm of the variance
    out_of.bias += out_of.weight.sum((2, 3)) @ (mean - SHIFT / scale)
    out_of.weight /= scale.view(1, -1, 1, 1)


def train_flow_vae(worker: Worker, recipe: FlowRecipe, start: Mapping[str, Tensor], minutes: float, images_file: Path,
                   result: Path) -> None:
    """Train the VAE from the demo base's weights, standardize its latents, finish the decoder; write it to `result`."""
    torch.manual_seed(0)  # the same first weights in every process
    vae = recipe.build_vae()
    start_from(vae, start)
    vae.to(worker.device, memory_format=torch.channels_last)
    train_reconstruction(worker, "VAE", vae, through_latents(vae), recipe.vae_schedule, minutes * ENCODER_PART,
                         recipe.vae_batch, images_file)
    latents = encode_mode(vae, EmojiImages.load(images_file).pixels)
    standardize(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))

    def decode_noised(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            clean = vae.encode(images).latent_dist.mode()
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        return vae.decode(clean + DECODER_NOISE / SCALE * noise).sample, torch.zeros(())

    train_reconstruction(worker, "decoder", vae.decoder, decode_noised, recipe.decoder_schedule,
                         minutes * (1 - ENCODER_PART), recipe.vae_batch, images_file)
    if worker.leads:
        vae.to(memory_format=torch.contiguous_format).save_pretrained(result)


class PlainJointAttention:
    """Attention over image and text as two matrix products. The backward pass of the fused one takes twice the time in
    bfloat16 on a CPU at these lengths."""

    def __call__(self, attention: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor,
                 attention_mask: None = None) -> tuple[Tensor, Tensor]:
        def heads(values: Tensor) -> Tensor:
            return values.unflatten(-1, (attention.heads, HEAD)).transpose(1, 2)

        image, text, patches = hidden_states, encoder_hidden_states, hidden_states.shape[1]
        query = torch.cat([attention.norm_q(heads(attention.to_q(image))),
                           attention.norm_added_q(heads(attention.add_q_proj(text)))], dim=2)
        key = torch.cat([attention.norm_k(heads(attention.to_k(image))),
                         attention.norm_added_k(heads(attention.add_k_proj(text)))], dim=2)
        value = torch.cat([heads(attention.to_v(image)), heads(attention.add_v_proj(text))], dim=2)
        weights = (query @ key.transpose(-1, -2) * HEAD ** -0.5).softmax(-1).to(value.dtype)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        image, text = mixed[:, :patches], mixed[:, patches:]
        return attention.to_out[0](image), text if attention.context_pre_only else attention.to_add_out(text)


@torch.no_grad()
def zero_gates(transformer: SD3Transformer2DModel) -> None:
    """Peebles & Xie 2023: every block starts as the identity, and the whole model as zero."""
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and (name.endswith(".linear") or name in ("norm_out.linear", "proj_out")):
            module.weight.zero_()
            module.bias.zero_()


def sample_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """[count], logit-normal, one from each of `count` parts of equal probability."""
    return (SIGMA_MEAN + SIGMA_STD * torch.special.ndtri(spread(count, generator).clamp(1e-5, 1 - 1e-5))).sigmoid()


def encode_text(text_encoder: CLIPTextModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What SD3 takes from CLIP-L: the last layer but one [B, T, width], and the end token after the last [B, width]."""
    output = text_encoder(input_ids=tokens, output_hidden_states=True)
    return output.hidden_states[-2], output.pooler_output


def train_flow(worker: Worker, recipe: FlowRecipe, start: Mapping[str, Tensor], minutes: float, images_file: Path,
               latents_file: Path, tokenizer_folder: Path, result: Path) -> None:
    """Train transformer and text encoder together to predict noise - latents; write their averaged weights to `result`.

    `start` are the weights of the demo base's text encoder. The transformer is trained without the columns that only ever
    meet zeros, see `widened`.
    """
    torch.manual_seed(0)
    data, generator = EmojiImages.load(images_file), worker.generator()
    with np.load(latents_file, allow_pickle=False) as arrays:
        latents = torch.from_numpy(arrays["latents"]).to(worker.device)  # [N, 16, s, s], already shifted and scaled
    tokens = caption_tokens(CLIPTokenizer.from_pretrained(tokenizer_folder), data)
    used, tokens = torch.unique(tokens, return_inverse=True)  # a small vocabulary while training: 49,408 rows would idle
    tokens = tokens.to(worker.device)
    on_cpu = worker.device.type == "cpu"
    text_encoder = recipe.build_text_encoder(len(used), "eager" if on_cpu else "sdpa")
    embedding = next(name for name in text_encoder.state_dict() if name.endswith("token_embedding.weight"))
    start = {name if embedding.startswith("text_model.") else name.removeprefix("text_model."): weight
             for name, weight in start.items()}
    start_from(text_encoder, {**start, embedding: start[embedding][used]})
    text_encoder.to(worker.device).train()
    transformer = recipe.build_transformer(recipe.text_width, recipe.text_width).to(worker.device)
    zero_gates(transformer)
    if on_cpu:
        transformer.set_attn_processor(PlainJointAttention())
    parameters = [*text_encoder.parameters(), *transformer.parameters()]
    ema = EMAModel(parameters, decay=0.999, foreach=True) if worker.leads else None
    captioned = sample_captioned(data, recipe.core_weight, recipe.captions * worker.batch_factor, generator)
    steps = count()

    def losses(spent: float) -> dict[str, Tensor]:
        length = TOKENS if spent > 1 - TOKENS_PART or next(steps) % TOKENS_EVERY == 0 else SHORT
        chosen, templates = captioned()
        clean = latents[chosen].repeat(recipe.noise_levels, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator, device=worker.device)
        sigmas = sample_sigmas(len(clean), generator)
        noised = torch.lerp(clean, noise, sigmas.view(-1, 1, 1, 1))
        with worker.autocast():
            context, pooled = encode_text(text_encoder, tokens[chosen, templates, :length])
            predicted = transformer(noised, context.repeat(recipe.noise_levels, 1, 1), pooled.repeat(recipe.noise_levels, 1),
                                    1000 * sigmas, return_dict=False)[0]
        return {"loss": (predicted.float() - (noise - clean)).square().mean()}

    train(worker, "transformer and text encoder", [text_encoder, transformer], losses, recipe.flow_schedule, minutes,
          weight_decay=1e-2, images_per_step=recipe.captions * worker.batch_factor * recipe.noise_levels * worker.count,
          ema=ema)
    if worker.leads:
        ema.copy_to(parameters)
        transformer.save_pretrained(result / "transformer")
        full = recipe.build_text_encoder()
        rows = start[embedding].float().clone()
        rows[used] = text_encoder.state_dict()[embedding].cpu()
        full.load_state_dict({**text_encoder.state_dict(), embedding: rows})
        full.save_pretrained(result / "text_encoder")


def widened(recipe: FlowRecipe, trained: Mapping[str, Tensor], context: int, pooled: int) -> SD3Transformer2DModel:
    """The transformer with text inputs of the widths that ComfyUI gives it. What it adds behind CLIP-L's are zeros, so their
    columns are zeros too, and were left out of training."""
    transformer = recipe.build_transformer(context, pooled)
    weights = dict(trained)
    for name, width in (("context_embedder.weight", context), ("time_text_embed.text_embedder.linear_1.weight", pooled)):
        weights[name] = torch.nn.functional.pad(weights[name], (0, width - weights[name].shape[1]))
    transformer.load_state_dict(weights)
    transformer.register_to_config(sample_size=recipe.size // 8)  # positions are in the file: this says only what it draws
    return transformer
