"""A training loop for flow models in plain diffusers, transformers and peft, which the engine's losses are compared with.

The layers are diffusers' own: q, k and v (and the single blocks' feed-forward) apart. Adapters that the engine has on a
joined layer share their first factor here, and have a second one each.
"""
import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import nn

from .flow_models import FLOW_MODELS
from .plain_loop import draw, picked, seeded

CLIP_TARGETS = r".*(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


class PlainFlow:
    """`rank` 0 trains the weights themselves; `text_rate` 0 leaves the text encoders alone."""

    def __init__(self, base, dataset, seed: int, batch: int, rate: float, rank: int, text_rate: float):
        self.model, self.seed, self.size = FLOW_MODELS[base.family], seed, batch
        folder = Path(base.path)
        self.captions = [image.caption for image in dataset.images]
        self.clean = latents_of(self.model, folder, dataset)
        self.text = self.model.plain_text(folder)
        for encoder in self.text.learning.values():
            encoder.requires_grad_(False)
        kind = type(self.model.transformer())
        self.denoiser = kind.from_pretrained(folder, subfolder="transformer").requires_grad_(not rank)
        torch.manual_seed(seeded(seed, 3))
        if rank:
            tied_adapters(self.denoiser, self.model.adapted(self.denoiser), rank)
        groups = [{"params": trainable(self.denoiser), "lr": rate}]
        for encoder in self.text.learning.values() if text_rate else ():
            encoder.requires_grad_(not rank)
            if rank:
                inject_adapter_in_model(config(rank, CLIP_TARGETS), encoder)
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
        shift = self.model.shift(*clean.shape[-2:])
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        level = sigmas[:, None, None, None]
        noisy = (1 - level) * clean + level * noise
        said = self.text([self.captions[index] for index in chosen])
        loss = F.mse_loss(self.model.velocity(self.denoiser, noisy, sigmas, said), noise - clean)
        loss.backward()
        parameters = [each for group in self.optimizer.param_groups for each in group["params"] if each.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def tied_adapters(denoiser: nn.Module, joined: list[list[str]], rank: int):
    """LoRA on layers of which each list is one in the native layout. The first factors are drawn by peft as for those."""
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


def config(rank: int, targets) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@torch.no_grad()
def latents_of(model, folder: Path, dataset):
    vae = model.vae_class.from_pretrained(folder, subfolder="vae")
    pixels = [torch.from_numpy(np.array(Image.open(image.path))).permute(2, 0, 1).float() / 127.5 - 1
              for image in dataset.images]
    return model.latents(vae, torch.stack(pixels))


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
        said = plain.text([each.caption])
        for level in range(4):
            sigma = torch.tensor([(level + start) / 4], dtype=torch.float32)
            noisy = (1 - sigma) * clean + sigma * noise[level]
            found = plain.model.velocity(plain.denoiser, noisy[None], sigma, said)[0]
            losses.append(F.mse_loss(found, noise[level] - clean).item())
    return sum(losses) / len(losses)
