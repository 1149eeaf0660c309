"""How an error counts: by its size, by the noise level of its sample, and by where in the image it is.

Shapes: predictions and targets are [batch, channels, height, width], masks [batch, 1, height, width]; what belongs to a
sample as a whole is [batch].
"""
import math

import torch
from torch import Tensor

DEBIASED_MAXIMUM_SNR = 1000.0
"""kohya's limit: the first timestep of some schedules has none."""
LEAST_SIGMA = 1e-3
"""The first of the thousand sigmas that diffusers' examples draw from; ours may be 0."""


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[batch] → [batch, 1, …] with as many dimensions as `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


# ---- by noise level ------------------------------------------------------------------------------------------------

def min_snr_weight(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR-gamma weights (Hang et al. 2023, arXiv:2303.09556, section 3.4): min(SNR, gamma) / SNR for epsilon,
    min(SNR, gamma) / (SNR + 1) for v. Pure noise, SNR 0, counts 1 for epsilon, the limit, and 0 for v."""
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def debiased_weight(snr: Tensor, prediction: str) -> Tensor:
    """Debiased estimation (Yu et al. 2023, arXiv:2310.08442): 1 / √SNR for epsilon, with the SNR limited as kohya does;
    for v kohya's 1 / (SNR + 1), which the paper does not treat and which is 1 at pure noise."""
    snr = snr.clamp(max=DEBIASED_MAXIMUM_SNR)
    return 1 / (snr + 1) if prediction == "v_prediction" else snr.rsqrt()


def sigma_weight(sigma: Tensor, weighting: str) -> Tensor:
    """Weights of a rectified flow by sigma, as diffusers' `compute_loss_weighting_for_sd3`: "sigma_sqrt" 1 / σ², the square
    of what velocities are divided by; "cosmap" 2 / (π (1 - 2σ + 2σ²)), the density of Esser et al. 2024 (arXiv:2403.03206,
    eq. 21), as a weight of the levels instead of their number; else 1."""
    if weighting == "sigma_sqrt":
        return sigma.clamp(min=LEAST_SIGMA) ** -2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return torch.ones_like(sigma)


# ---- by size -------------------------------------------------------------------------------------------------------

def huber_threshold(c: float, schedule: str, alpha: Tensor, sigma: Tensor, fraction: Tensor) -> Tensor:
    """Where the Huber loss turns straight, for samples alpha · x + sigma · noise at the `fraction` of the schedule.

    kohya's schedules: "constant" c; "exponential" c^fraction, from 1 at the clean end to c; "snr" c + (1 - c) / (1 + σ)²
    with σ = sigma / alpha, from 1 to c as well (after Khrapov et al. 2024, arXiv:2403.16728).
    """
    if schedule == "constant":
        return torch.full_like(alpha, c)
    if schedule == "exponential":
        return c ** fraction
    return c + (1 - c) * (alpha / (alpha + sigma)) ** 2


def elementwise_error(error: Tensor, loss: str, threshold: Tensor | None = None) -> Tensor:
    """e² ("l2"), |e| ("l1"), or kohya's pseudo-Huber 2c(√(e² + c²) - c), which is e² for small and 2c|e| for large
    errors. `threshold` is c, one for each sample."""
    if loss == "l1":
        return error.abs()
    if loss == "huber":
        if threshold is None:
            raise ValueError("the Huber loss needs a threshold")
        c = per_sample(threshold.float(), error)
        # c(√(e² + c²) - c) = e²c / (√(e² + c²) + c), without the difference of nearly equal numbers.
        return 2 * c * error.square() / ((error.square() + c**2).sqrt() + c)
    return error.square()


# ---- by place ------------------------------------------------------------------------------------------------------

def mask_weight(masks: Tensor, unmasked_weight: float) -> Tensor:
    """1 where masks are white, `unmasked_weight` where they are black, in proportion between."""
    return unmasked_weight + (1 - unmasked_weight) * masks


def weighted_loss(prediction: Tensor, target: Tensor, weight: Tensor, loss: str = "l2", threshold: Tensor | None = None,
                  masks: Tensor | None = None, unmasked_weight: float = 1.0) -> Tensor:
    """The mean error of each sample, weighted by `weight` and averaged over the batch: a scalar in float32.

    A masked error is averaged over the whole image, as kohya and OneTrainer (by default) do: an image with a small mask
    counts less than one with a large mask, and a learning rate keeps its meaning where nothing is masked.
    """
    error = elementwise_error(prediction.float() - target.float(), loss, threshold)
    if masks is not None:
        error = error * mask_weight(masks.float(), unmasked_weight)
    return (error.flatten(1).mean(dim=1) * weight.float()).mean()
