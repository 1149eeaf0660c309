"""A demo base in ComfyUI, in this process: finished files applied by its own loaders, images drawn, losses measured.

Import only after `pack.become_host`.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch
from finetune.nodes import host
from finetune.trainers.families.component_configs import config_folder
from finetune.trainers.families.recognition import recognize

from .demo_training import DEMO_BASES

STEPS, GUIDANCE, SIZE = 20, 4.0, 64


@dataclass(frozen=True)
class Drawer:
    """A native MODEL, CLIP and VAE."""

    model: object
    clip: object
    vae: object
    base: object
    """What was loaded, as the Train nodes know it."""

    def with_lora(self, file: Path) -> "Drawer":
        lora = comfy.utils.load_torch_file(str(file), safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(self.model, self.clip, lora, 1.0, 1.0)
        return replace(self, model=model, clip=clip)

    def with_hypernetwork(self, file: Path) -> "Drawer":
        patch, model = load_hypernetwork_patch(str(file), 1.0), self.model.clone()
        model.set_model_attn1_patch(patch)
        model.set_model_attn2_patch(patch)
        return replace(self, model=model)

    def with_checkpoint(self, file: Path) -> "Drawer":
        """The models of a checkpoint file of the base's shape."""
        return Drawer(*host.load_checkpoint([file], self.base.family, config_folder(self.base)), self.base)

    def condition(self, captions: list[str]) -> list:
        """All captions as one batch of conditioning."""
        encoded = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))[0] for caption in captions]
        pooled = torch.cat([each[1]["pooled_output"] for each in encoded])
        return [[torch.cat([each[0] for each in encoded]), {"pooled_output": pooled}]]

    @torch.no_grad()
    def draw(self, captions: list[str], seed: int) -> np.ndarray:
        """One image per caption, float32 [count, 64, 64, 3] in 0…1; the same seed starts from the same noise."""
        empty = torch.zeros((len(captions), self.model.model.latent_format.latent_channels, SIZE // 8, SIZE // 8))
        latents = comfy.sample.sample(
            self.model, comfy.sample.prepare_noise(empty, seed), STEPS, GUIDANCE, "dpmpp_2m", "normal",
            self.condition(captions), self.condition([""] * len(captions)), empty, seed=seed, disable_pbar=True,
        )
        return self.vae.decode(latents).reshape(-1, SIZE, SIZE, 3).clamp(0, 1).cpu().numpy()

    @torch.no_grad()
    def denoising_loss(self, captions: list[str], images: np.ndarray, rounds: int = 8) -> float:
        """Mean squared error of the predicted noise, or of a flow's velocity, on true images, at noise and timesteps that
        never change."""
        comfy.model_management.load_models_gpu([self.model])
        process, device = self.model.model, self.model.load_device
        sampling = process.model_sampling
        latents = process.process_latent_in(self.vae.encode(torch.from_numpy(images))).to(device)
        context, said = self.condition(captions)[0]
        words = {"c_crossattn": context.to(device)}
        if process.adm_channels:
            words["y"] = said["pooled_output"].to(device)
        patches = self.model.model_options.get("transformer_options", {})
        draw, count, total = torch.Generator().manual_seed(7), len(latents), 0.0
        spread = torch.arange(count) * 1000 // count
        for number in range(rounds):
            noise = torch.randn(latents.shape, generator=draw).to(device)
            timesteps = (spread + torch.randint(0, 1000 // count, (count,), generator=draw)).roll(number).clamp(min=1)
            sigmas = sampling.sigma(timesteps.float().to(device))
            wide = sigmas.reshape(-1, 1, 1, 1)
            noised = sampling.noise_scaling(wide, noise, latents)
            clean = process.apply_model(noised, sigmas, transformer_options=patches, **words)
            # The host predicts the clean latents: e - e' = (x' - x) / sigma, both with x_t = x + sigma e and for a flow.
            total += ((clean - latents) / wide).square().mean().item()
        return total / rounds


def demo_drawer(embeddings: Path, name: str = "sd") -> Drawer:
    """A base of DEMO_BASES; `embedding:name` in captions is looked up in the folder `embeddings` too."""
    folder_paths.add_model_folder_path("embeddings", str(embeddings))
    base = recognize(str(DEMO_BASES[name]), f"demo_base_{name}")
    return Drawer(*host.load_base(base), base)
