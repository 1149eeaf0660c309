"""Ways from noise to latents, which families choose from. What calls them knows none of their insides."""
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..objectives.noise import shifted
from .protocol import Guidance, Predict


@dataclass(frozen=True)
class DiscreteSampler:
    """A diffusers scheduler over a discrete noise schedule."""

    scheduler: Any
    guidance: Guidance = "classifier-free"

    def sample(self, predict: Predict, noise: Tensor, steps: int) -> Tensor:
        self.scheduler.set_timesteps(steps, device=noise.device)
        latents = noise * self.scheduler.init_noise_sigma
        for timestep in self.scheduler.timesteps:
            prediction = predict(self.scheduler.scale_model_input(latents, timestep), timestep)
            latents = self.scheduler.step(prediction, timestep, latents).prev_sample
        return latents


@dataclass(frozen=True)
class FlowSampler:
    """Euler steps along the velocity of a rectified flow, over sigmas from 1 to 0 that `shift(height, width)` of the latents
    moves towards noise (Esser et al. 2024, arXiv:2403.03206, eq. 23). Timesteps are 1000 sigma, as in the objective.

    With `last_sigma`, those above 0 are stretched so that the last of them is that (diffusers' `shift_terminal`)."""

    shift: Callable[[int, int], float]
    guidance: Guidance = "classifier-free"
    last_sigma: float = 0.0

    def sample(self, predict: Predict, noise: Tensor, steps: int) -> Tensor:
        sigmas = shifted(torch.linspace(1, 0, steps + 1, device=noise.device), self.shift(*noise.shape[-2:]))
        if self.last_sigma and steps > 1:
            sigmas[:-1] = 1 - (1 - sigmas[:-1]) * (1 - self.last_sigma) / (1 - sigmas[-2])
        latents = noise
        for sigma, following in pairwise(sigmas):
            latents = latents + (following - sigma) * predict(latents, 1000 * sigma)
        return latents
