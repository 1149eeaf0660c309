"""What the network is asked to predict: noising, target and loss, for every kind of model.

Shapes: latents, noise and targets are [batch, channels, height, width]; timesteps and weights are [batch]. Noise is in
`noise`, the parts of the loss in `losses`. A sample's generator is asked for its noise level, its noise (with the offset),
its multi-resolution noise, the input perturbation and the image noise, in this order.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..spec import ObjectiveSpec
from .losses import debiased_weight, huber_threshold, min_snr_weight, per_sample, sigma_weight, weighted_loss
from .noise import UNSHIFTED, FamilyShift, NoiseLevels, disturb, sample_noise, with_zero_terminal_snr


@dataclass(frozen=True)
class Noised:
    """A noised batch: what goes in, what should come out, and how much each sample counts. `threshold` [batch] belongs to
    the Huber loss."""

    latents: Tensor
    timesteps: Tensor
    target: Tensor
    weight: Tensor
    threshold: Tensor | None = None


class Objective(Protocol):
    @property
    def settings(self) -> ObjectiveSpec: ...

    def noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Noised:
        """Noise each sample with its own generator, as the settings want it."""
        ...

    def levels(self, fractions: Tensor) -> Tensor:
        """Noise levels [batch] at these fractions of the schedule, 0 clean and 1 noise, as `mix` takes them."""
        ...

    def mix(self, latents: Tensor, noise: Tensor, levels: Tensor, mixed: Tensor | None = None) -> Noised:
        """Latents with `noise` mixed in, which the target knows; or with `mixed`, where that is another one."""
        ...

    def loss(self, prediction: Tensor, noised: Noised, masks: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        """How wrong a prediction is: a scalar in float32. `masks` [batch, 1, height, width] in 0…1; `weights` [batch], how
        much each sample counts besides."""
        ...


@dataclass(frozen=True)
class DiscreteObjective:
    """Denoising diffusion (Ho et al. 2020, arXiv:2006.11239, eq. 4: x_t = sqrt(a) x_0 + sqrt(1 - a) e) with the target
    e ("epsilon") or v = sqrt(a) e - sqrt(1 - a) x_0 ("v_prediction", Salimans & Ho 2022, arXiv:2202.00512, section 4)."""

    alphas_cumprod: Tensor
    prediction: str
    settings: ObjectiveSpec = ObjectiveSpec()

    def noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Noised:
        steps, levels = len(self.alphas_cumprod), noise_levels(self.settings, "uniform")
        timesteps = torch.cat([levels.sample_step(each, steps) for each in generators])
        clean, noise, mixed = sample_parts(latents, generators, self.settings)
        return self.mix(clean, noise, timesteps, mixed)

    def levels(self, fractions: Tensor) -> Tensor:
        """Timesteps, int64."""
        return (fractions * len(self.alphas_cumprod)).long()

    def mix(self, latents: Tensor, noise: Tensor, levels: Tensor, mixed: Tensor | None = None) -> Noised:
        alphas, timesteps = self.alphas_cumprod[levels].to(latents), levels.to(latents.device)
        fractions = levels.to(latents) / len(self.alphas_cumprod)
        threshold = sample_threshold(self.settings, alphas.sqrt(), (1 - alphas).sqrt(), fractions)
        alpha, sigma = per_sample(alphas.sqrt(), latents), per_sample((1 - alphas).sqrt(), latents)
        target = noise if self.prediction == "epsilon" else alpha * noise - sigma * latents
        noisy = alpha * latents + sigma * (noise if mixed is None else mixed)
        return Noised(noisy, timesteps, target, self._weight(alphas), threshold)

    def _weight(self, alphas: Tensor) -> Tensor:
        if self.settings.min_snr_gamma:
            return min_snr_weight(alphas / (1 - alphas), self.settings.min_snr_gamma, self.prediction)
        if self.settings.debiased:
            return debiased_weight(alphas / (1 - alphas), self.prediction)
        return torch.ones_like(alphas)

    def loss(self, prediction: Tensor, noised: Noised, masks: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return objective_loss(prediction, noised, self.settings, masks, weights)


@dataclass(frozen=True)
class FlowObjective:
    """Rectified flow (Esser et al. 2024, arXiv:2403.03206): x_s = (1 - s) x_0 + s e, target e - x_0.

    s is sampled logit-normally (their eq. 19) if the settings name no other density, and shifted by their eq. 23, by
    what the settings and the family's `shift` make of the size of the latents. Timesteps handed to the network are 1000 s.
    """

    settings: ObjectiveSpec = ObjectiveSpec()
    shift: FamilyShift = UNSHIFTED

    def noise(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Noised:
        levels = noise_levels(self.settings, "logit_normal")
        shift = chosen_shift(self.settings, self.shift, *latents.shape[-2:])
        sigmas = torch.cat([levels.sample_sigma(each, shift) for each in generators])
        clean, noise, mixed = sample_parts(latents, generators, self.settings)
        return self.mix(clean, noise, sigmas, mixed)

    def levels(self, fractions: Tensor) -> Tensor:
        """Sigmas. No shift moves them: a validation loss compares runs whatever their shift and density."""
        return fractions

    def mix(self, latents: Tensor, noise: Tensor, levels: Tensor, mixed: Tensor | None = None) -> Noised:
        sigmas = levels.to(latents)
        sigma, threshold = per_sample(sigmas, latents), sample_threshold(self.settings, 1 - sigmas, sigmas, sigmas)
        noisy = (1 - sigma) * latents + sigma * (noise if mixed is None else mixed)
        weight = sigma_weight(sigmas, self.settings.flow_weighting)
        return Noised(noisy, 1000 * sigmas, noise - latents, weight, threshold)

    def loss(self, prediction: Tensor, noised: Noised, masks: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
        return objective_loss(prediction, noised, self.settings, masks, weights)


def noise_levels(settings: ObjectiveSpec, automatic: str) -> NoiseLevels:
    """`automatic` is the density that "auto" stands for."""
    distribution = automatic if settings.distribution == "auto" else settings.distribution
    return NoiseLevels(distribution, settings.distribution_mean, settings.distribution_spread, settings.minimum_timestep,
                       settings.maximum_timestep)


def sample_parts(latents: Tensor, generators: Sequence[torch.Generator],
                 settings: ObjectiveSpec) -> tuple[Tensor, Tensor, Tensor]:
    """(clean latents, noise that the target knows, noise that is mixed in).

    The last two differ by the input perturbation (Ning et al. 2023, arXiv:2301.11706, algorithm 1: e + γ ξ). Image noise
    becomes part of the clean latents, so that the target is true to it.
    """
    noise = sample_noise(latents, generators, settings.noise_offset, settings.multires_iterations,
                         settings.multires_discount)
    mixed = disturb(noise, generators, settings.input_perturbation)
    return disturb(latents, generators, settings.image_noise), noise, mixed


def sample_threshold(settings: ObjectiveSpec, alpha: Tensor, sigma: Tensor, fraction: Tensor) -> Tensor | None:
    if settings.loss != "huber":
        return None
    return huber_threshold(settings.huber_c, settings.huber_schedule, alpha, sigma, fraction)


def objective_loss(prediction: Tensor, noised: Noised, settings: ObjectiveSpec, masks: Tensor | None,
                   weights: Tensor | None) -> Tensor:
    weight = noised.weight if weights is None else noised.weight * weights
    return weighted_loss(prediction, noised.target, weight, settings.loss, noised.threshold, masks, settings.unmasked_weight)


def chosen_shift(settings: ObjectiveSpec, family: FamilyShift, height: int, width: int) -> float:
    """The shift of latents of this size."""
    mode, constant = settings.flow_shift_mode, settings.flow_shift
    if mode == "auto":
        return constant or family.shift(height, width)
    if mode == "dynamic":
        return family.line(height * width // family.patch**2)
    constant = constant or family.shift(family.side, family.side)
    return constant if mode == "constant" else constant * (height * width) ** 0.5 / family.side


def make_objective(prediction: str, alphas_cumprod: Tensor | None, settings: ObjectiveSpec,
                   shift: FamilyShift = UNSHIFTED) -> Objective:
    """The objective of a checkpoint. `alphas_cumprod` is None for flow models, and only those read the family's `shift`."""
    if prediction == "flow":
        return FlowObjective(settings, shift)
    assert alphas_cumprod is not None
    if settings.zero_terminal_snr:
        alphas_cumprod = with_zero_terminal_snr(alphas_cumprod)
    return DiscreteObjective(alphas_cumprod, prediction, settings)


def objective_notes(prediction: str, settings: ObjectiveSpec) -> list[str]:
    """Settings that this kind of model does not read, and combinations that people should know of."""
    flow, notes = prediction == "flow", []
    if flow and settings.min_snr_gamma:
        notes.append("min_snr_gamma is not read: flow models have no such weighting")
    if not flow and settings.flow_shift not in (0, 1):
        notes.append("flow_shift is not read: it belongs to flow models, and this model is none")
    for field in ("flow_shift_mode", "flow_weighting") if not flow else ():
        if getattr(settings, field) != ObjectiveSpec.model_fields[field].default:
            notes.append(f"{field} is not read: it belongs to flow models, and this model is none")
    if flow and settings.flow_shift and settings.flow_shift_mode == "dynamic":
        notes.append("flow_shift is not read: with flow_shift_mode dynamic the shift follows from the size of the images")
    distribution = noise_levels(settings, "logit_normal" if flow else "uniform").distribution
    if settings.distribution_mean != 0 and distribution != "logit_normal":
        notes.append(f"distribution_mean is not read by the distribution {distribution}")
    if settings.distribution_spread != 1 and distribution not in ("logit_normal", "sigmoid", "mode"):
        notes.append(f"distribution_spread is not read by the distribution {distribution}")
    if settings.zero_terminal_snr and settings.min_snr_gamma:
        notes.append("min_snr_gamma gives pure noise the weight 0, so the step that zero_terminal_snr adds is not learned; "
                     "set min_snr_gamma to 0, or use debiased")
    return notes
