"""What the network is asked to predict: noising, target and loss weight, as pure functions of their arguments.

Shapes: latents, noise and targets are [batch, channels, height, width]; timesteps and weights are [batch].
"""
from dataclasses import dataclass
from typing import Protocol, Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """A noised batch: what goes in, what should come out, and how much each sample counts."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor


class Objective(Protocol):
    def noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Noised:
        """Noise each sample with its own generator."""

    def loss(self, prediction: Tensor, noised: Noised, masks: Tensor | None = None) -> Tensor:
        """How wrong a prediction is: a scalar in float32. `masks` [batch, 1, height, width] in 0…1."""


def scaled_linear_alphas(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Cumulative products of alpha, float32 [steps], of the schedule of Stable Diffusion (latent diffusion's "linear")."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def draw_noise(latents: Tensor, generators: Sequence[torch.Generator], offset: float) -> Tensor:
    """Unit Gaussian noise like `latents`; with an offset, each channel is shifted by `offset` · N(0, 1)."""
    samples = []
    for latent, generator in zip(latents, generators, strict=True):
        noise = torch.randn(latent.shape, generator=generator)
        if offset:
            noise = noise + offset * torch.randn((latent.shape[0], 1, 1), generator=generator)
        samples.append(noise)
    return torch.stack(samples).to(latents)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 1))


def min_snr_weight(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR-gamma weights (Hang et al. 2023, arXiv:2303.09556, section 3.4): min(SNR, gamma) / SNR for epsilon,
    min(SNR, gamma) / (SNR + 1) for v."""
    return snr.clamp(max=gamma) / (snr + 1 if prediction == "v_prediction" else snr)


@dataclass(frozen=True)
class DiscreteObjective:
    """Denoising diffusion (Ho et al. 2020, arXiv:2006.11239, eq. 4: x_t = sqrt(a) x_0 + sqrt(1 - a) e) with the target
    e ("epsilon") or v = sqrt(a) e - sqrt(1 - a) x_0 ("v_prediction", Salimans & Ho 2022, arXiv:2202.00512, section 4)."""

    alphas_cumprod: Tensor
    prediction: str
    min_snr_gamma: float = 0.0
    noise_offset: float = 0.0

    def noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Noised:
        steps = len(self.alphas_cumprod)
        timesteps = torch.cat([torch.randint(0, steps, (1,), generator=each) for each in generators])
        noise = draw_noise(latents, generators, self.noise_offset)
        alphas = self.alphas_cumprod[timesteps].to(latents)
        signal, spread = per_sample(alphas.sqrt(), latents), per_sample((1 - alphas).sqrt(), latents)
        target = noise if self.prediction == "epsilon" else signal * noise - spread * latents
        weight = torch.ones_like(alphas)
        if self.min_snr_gamma:
            weight = min_snr_weight(alphas / (1 - alphas), self.min_snr_gamma, self.prediction)
        return Noised(signal * latents + spread * noise, timesteps.to(latents.device), target, weight)

    def loss(self, prediction: Tensor, noised: Noised, masks: Tensor | None = None) -> Tensor:
        return weighted_loss(prediction, noised)


@dataclass(frozen=True)
class FlowObjective:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206): x_s = (1 - s) x_0 + s e, target e - x_0.

    s is the sigmoid of a unit Gaussian (their logit-normal, eq. 19), then shifted by s' = k s / (1 + (k - 1) s) (eq. 23).
    Timesteps handed to the network are 1000 s.
    """

    shift: float = 1.0
    noise_offset: float = 0.0

    def noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Noised:
        sigma = torch.cat([torch.randn((1,), generator=each) for each in generators]).sigmoid()
        sigma = (self.shift * sigma / (1 + (self.shift - 1) * sigma)).to(latents)
        noise = draw_noise(latents, generators, self.noise_offset)
        mix = per_sample(sigma, latents)
        return Noised((1 - mix) * latents + mix * noise, 1000 * sigma, noise - latents, torch.ones_like(sigma))

    def loss(self, prediction: Tensor, noised: Noised, masks: Tensor | None = None) -> Tensor:
        return weighted_loss(prediction, noised)


def weighted_loss(prediction: Tensor, noised: Noised) -> Tensor:
    """Mean squared error per sample, weighted, averaged over the batch: a scalar in float32."""
    error = (prediction.float() - noised.target.float()).square()
    return (error.flatten(1).mean(dim=1) * noised.weight.float()).mean()


def make_objective(prediction: str, alphas_cumprod: Tensor | None, settings) -> Objective:
    """The objective of a checkpoint. `settings` is a spec's ObjectiveSpec; `alphas_cumprod` is None for flow models."""
    if prediction == "flow":
        return FlowObjective(shift=settings.flow_shift, noise_offset=settings.noise_offset)
    return DiscreteObjective(alphas_cumprod, prediction, settings.min_snr_gamma, settings.noise_offset)
