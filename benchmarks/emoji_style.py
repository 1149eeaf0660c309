"""How near images are to a style of emoji: statistics, distances, and the denoising loss on true images.

Color and edge statistics tell flat Noto emoji from outlined OpenMoji; pixel errors do not, because the composition of
an image that was never seen cannot be learned from others.
"""
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SIZE = 64
STATISTICS = ("dark", "white", "saturated", "edges", "red", "green", "blue")


def read_emoji(folder: Path) -> tuple[list[str], np.ndarray]:
    """(captions, images float32 [count, 64, 64, 3] in 0…1) of a folder of captioned images, by name."""
    files = sorted(folder.glob("*.png"))
    images = [
        np.asarray(Image.open(file).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float32) / 255
        for file in files
    ]
    return [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files], np.stack(images)


def style_statistics(images: np.ndarray) -> np.ndarray:
    """Per image: shares of dark, white, saturated and edge pixels, and the mean color: [count, 7]."""
    gray = images.mean(axis=-1)
    saturation = images.max(axis=-1) - images.min(axis=-1)
    edges = np.abs(np.diff(gray, axis=1))[:, :, :-1] + np.abs(np.diff(gray, axis=2))[:, :-1]
    shares = [(gray < 0.3), (gray > 0.93), (saturation > 0.5), (edges > 0.25)]
    return np.stack([*(fraction.mean(axis=(1, 2)) for fraction in shares), *images.mean(axis=(1, 2)).T], axis=1)


def measure(images: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Edge and dark shares of images, and how far their mean statistics are from the target's (Euclidean)."""
    ours, theirs = style_statistics(images).mean(axis=0), style_statistics(target).mean(axis=0)
    return {
        "edges": float(ours[STATISTICS.index("edges")]), "dark": float(ours[STATISTICS.index("dark")]),
        "distance": float(np.linalg.norm(ours - theirs)),
    }


@torch.no_grad()
def denoising_loss(pipeline, captions: list[str], images: np.ndarray, rounds: int = 16) -> float:
    """Mean squared error of the noise prediction on true images, at noise and timesteps that never change."""
    from diffusers import DDPMScheduler

    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    hidden, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
    scheduler, draw, total = DDPMScheduler.from_config(pipeline.scheduler.config), torch.Generator().manual_seed(7), 0.0
    count = len(latents)
    spread = torch.arange(count) * 1000 // count
    for number in range(rounds):
        noise = torch.randn(latents.shape, generator=draw)
        timesteps = (spread + torch.randint(0, 1000 // count, (count,), generator=draw)).roll(number)
        prediction = pipeline.unet(scheduler.add_noise(latents, noise, timesteps), timesteps, hidden).sample
        total += (prediction - noise).square().mean().item()
    return total / rounds


@torch.no_grad()
def draw_images(pipeline, captions: list[str], seed: int, guidance: float = 4.0) -> np.ndarray:
    """One image per caption, DPM++ 2M, 20 steps; noise from (seed, place)."""
    generators = [torch.Generator().manual_seed(1000 * seed + place) for place in range(len(captions))]
    return pipeline(captions, height=SIZE, width=SIZE, num_inference_steps=20, guidance_scale=guidance,
                    generator=generators, output_type="np").images
