"""A training loop for flow models in plain diffusers, transformers and peft, which the engine's losses are compared with.

The layers are diffusers' own: q, k and v (and the single blocks' feed-forward) apart. Adapters that the engine has on a
joined layer share their first factor here, and have a second one each.
"""
import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from .plain_loop import draw, picked, seeded

TOGETHER = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))
CLIP_TARGETS = r".*(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


class PlainFlow:
    """`rank` 0 trains the weights themselves; `text_rate` 0 leaves the text encoders alone."""

    def __init__(self, base, dataset, seed: int, batch: int, rate: float, rank: int, text_rate: float):
        self.base, self.seed, self.size = base, seed, batch
        self.captions = [image.caption for image in dataset.images]
        self.clean = latents_of(base, dataset)
        self.text = TextOf(base)
        kind = SD3Transformer2DModel if base.family == "sd3" else FluxTransformer2DModel
        self.denoiser = kind.from_pretrained(base.path, subfolder="transformer").requires_grad_(not rank)
        torch.manual_seed(seeded(seed, 3))
        if rank:
            tied_adapters(self.denoiser, rank)
        groups = [{"params": trainable(self.denoiser), "lr": rate}]
        for encoder in self.text.clips.values() if text_rate else ():
            encoder.requires_grad_(not rank)
            if rank:
                adapted(encoder, rank, CLIP_TARGETS)
            groups.append({"params": trainable(encoder), "lr": text_rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, eps=1e-8)

    def losses(self, steps: int) -> list[float]:
        return [self.step(number) for number in range(steps)]

    def step(self, number: int) -> float:
        chosen = picked(self.seed, number, len(self.captions), self.size)
        noise, sigmas = [], []
        for sample in range(self.size):
            generator = draw(self.seed, 0, number, sample)
            sigmas.append(torch.randn((1,), generator=generator).sigmoid())
            noise.append(torch.randn(self.clean.shape[1:], generator=generator))
        noise, sigmas, clean = torch.stack(noise), torch.cat(sigmas), self.clean[chosen]
        shift = 3.0 if self.base.family == "sd3" else dynamic_shift(clean.shape[-2] // 2 * (clean.shape[-1] // 2))
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        level = sigmas[:, None, None, None]
        noisy = (1 - level) * clean + level * noise
        hidden, pooled = self.text([self.captions[index] for index in chosen])
        loss = F.mse_loss(self.velocity(noisy, sigmas, hidden, pooled), noise - clean)
        loss.backward()
        parameters = [each for group in self.optimizer.param_groups for each in group["params"] if each.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def velocity(self, latents, sigmas, hidden, pooled):
        if self.base.family == "sd3":
            return self.denoiser(latents, hidden, pooled, 1000 * sigmas).sample
        batch, channels, height, width = latents.shape
        packed = FluxPipeline._pack_latents(latents, batch, channels, height, width)
        places = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, "cpu", torch.float32)
        found = self.denoiser(packed, hidden, pooled, sigmas, places, torch.zeros(hidden.shape[1], 3),
                              guidance=torch.ones(batch)).sample
        return FluxPipeline._unpack_latents(found, 8 * height, 8 * width, 8)


class TextOf:
    """The text encoders of a folder: (hidden, pooled) of captions, as ComfyUI makes them."""

    def __init__(self, base):
        def part(name, kind):
            return kind.from_pretrained(Path(base.path) / name)

        self.is_sd3 = base.family == "sd3"
        last = "_3" if self.is_sd3 else "_2"
        self.tokenizers = [part("tokenizer", CLIPTokenizer)]
        self.clips = {"te1": part("text_encoder", CLIPTextModel)}
        if self.is_sd3:
            self.tokenizers.append(part("tokenizer_2", CLIPTokenizer))
            self.clips["te2"] = part("text_encoder_2", CLIPTextModelWithProjection)
        self.t5_tokenizer = part(f"tokenizer{last}", T5TokenizerFast)
        self.t5 = part(f"text_encoder{last}", T5EncoderModel).requires_grad_(False).eval()
        for encoder in self.clips.values():
            encoder.requires_grad_(False)

    def __call__(self, captions):
        ids = [each(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
               for each in self.tokenizers]
        one, *others = (clip(each, output_hidden_states=True) for clip, each in zip(self.clips.values(), ids, strict=True))
        length = 77 if self.is_sd3 else 256
        tokens = self.t5_tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt").input_ids
        states = self.t5(tokens).last_hidden_state
        if not self.is_sd3:
            return states, one.pooler_output
        both = torch.cat([one.hidden_states[-2], others[0].hidden_states[-2]], dim=-1)
        both = F.pad(both, (0, states.shape[-1] - both.shape[-1]))
        return torch.cat([both, states], dim=1), torch.cat([one.pooler_output, others[0].text_embeds], dim=-1)


def dynamic_shift(tokens: int) -> float:
    """FLUX.1's scheduler: mu 0.5 at 256 tokens, 1.15 at 4096."""
    return math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))


def tied_adapters(denoiser: nn.Module, rank: int):
    """LoRA on attention. The first factors are drawn by peft as for joined layers: layer by layer, projections out of the
    attention before those into it."""
    joined = []
    for name, block in denoiser.named_modules():
        if name.endswith(("attn", "attn2")):
            outs = [f"{name}.{each}" for each in ("to_out.0", "to_add_out") if has(block, each)]
            groups = [[f"{name}.{each}" for each in group] for group in TOGETHER if has(block, group[0])]
            if name.startswith("single"):
                start = name.removesuffix(".attn")
                outs, groups = [f"{start}.proj_out"], [[*groups[0], f"{start}.proj_mlp"]]
            joined += [*([each] for each in outs), *groups]
    layers = [[denoiser.get_submodule(name) for name in group] for group in joined]
    with torch.random.fork_rng():
        twin = nn.ModuleList(nn.Linear(group[0].in_features, sum(each.out_features for each in group)) for group in layers)
    inject_adapter_in_model(config(rank, [str(number) for number in range(len(twin))]), twin)
    with torch.random.fork_rng():
        inject_adapter_in_model(config(rank, [name for group in joined for name in group]), denoiser)
    for drawn, group in zip(twin, joined, strict=True):
        first = denoiser.get_submodule(group[0]).lora_A["default"]
        first.weight.data.copy_(drawn.lora_A["default"].weight)
        for name in group[1:]:
            denoiser.get_submodule(name).lora_A["default"] = first


def adapted(encoder: nn.Module, rank: int, targets: str):
    inject_adapter_in_model(config(rank, targets), encoder)


def config(rank: int, targets) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)


def has(module: nn.Module, name: str) -> bool:
    try:
        return isinstance(module.get_submodule(name), nn.Linear)
    except AttributeError:
        return False


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@torch.no_grad()
def latents_of(base, dataset):
    vae = AutoencoderKL.from_pretrained(base.path, subfolder="vae")
    pixels = [torch.from_numpy(np.array(Image.open(image.path))).permute(2, 0, 1).float() / 127.5 - 1
              for image in dataset.images]
    return (vae.encode(torch.stack(pixels)).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def plain_validation(base, images, seed: int) -> float:
    """The mean loss at four evenly spaced sigmas for every image, without any shift; the noise of an image is always the
    same."""
    plain, losses = PlainFlow(base, SimpleNamespace(images=images), seed, 1, 0.0, 1, 0.0), []
    for clean, each in zip(plain.clean, images, strict=True):
        number = int(hashlib.sha256(f"validation {each.digest}".encode()).hexdigest()[:16], 16)
        generator = draw(seed, 6, number)
        start = torch.rand((), generator=generator, dtype=torch.float64).item()
        noise = torch.randn((4, *clean.shape), generator=generator)
        hidden, pooled = plain.text([each.caption])
        for level in range(4):
            sigma = torch.tensor([(level + start) / 4], dtype=torch.float32)
            noisy = (1 - sigma) * clean + sigma * noise[level]
            losses.append(F.mse_loss(plain.velocity(noisy[None], sigma, hidden, pooled)[0], noise[level] - clean).item())
    return sum(losses) / len(losses)
