"""Noise and noise levels: what is mixed into a sample, and how much of it.

Everything random about a sample comes from its own generator, in a fixed order, and only what is switched on asks it: a
sample is the same in any batch, and a control that is off leaves all other numbers as they are.
"""
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIRES_FACTORS = 2.0, 4.0
"""Each lower resolution is smaller by a power of a factor from this range."""


def scaled_linear_alphas(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Tensor:
    """Cumulative products of alpha, float32 [steps], of the schedule of Stable Diffusion (latent diffusion's "linear")."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def with_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule [steps] shifted and scaled so that its last step is pure noise and its first stays as it is (Lin et al.
    2023, arXiv:2305.08891, algorithm 1: √a' = (√a - √a_T) · √a_0 / (√a_0 - √a_T))."""
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


def sample_noise(latents: Tensor, generators: Sequence[torch.Generator], offset: float = 0.0, iterations: int = 0,
                 discount: float = 0.3) -> Tensor:
    """Unit Gaussian noise like `latents` [batch, channels, height, width].

    With an offset, each channel is shifted by `offset` · N(0, 1) (Guttenberg 2023, "Diffusion with Offset Noise"). With
    `iterations`, noise of lower resolutions is added before, see `multires_noise`; so the offset keeps its strength.
    """
    samples = []
    for latent, generator in zip(latents, generators, strict=True):
        noise = torch.randn(latent.shape, generator=generator)
        shift = offset * torch.randn((latent.shape[0], 1, 1), generator=generator) if offset else None
        if iterations:
            noise = multires_noise(noise, generator, iterations, discount)
        samples.append(noise if shift is None else noise + shift)
    return torch.stack(samples).to(latents)


def multires_noise(noise: Tensor, generator: torch.Generator, iterations: int, discount: float) -> Tensor:
    """Noise [channels, height, width] with noise of lower resolutions added (Whitaker 2023, "Multi-Resolution Noise for
    Diffusion Model Training"): Σ_i discount^i · enlarged(noise of size / r^i), i = 0 … iterations - 1, r from 2…4 drawn
    for every i, until a side is one number long.

    Divided by its own root mean square, so that its variance is 1 and no other sample of the batch has a say in it.
    """
    channels, height, width = noise.shape
    least, most = MULTIRES_FACTORS
    for level in range(iterations):
        factor = (least + (most - least) * torch.rand((), generator=generator).item()) ** level
        size = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn((1, channels, *size), generator=generator)
        noise = noise + discount**level * F.interpolate(coarse, (height, width), mode="bilinear")[0]
        if 1 in size:
            break
    return noise / noise.square().mean().sqrt()


def disturb(values: Tensor, generators: Sequence[torch.Generator], strength: float) -> Tensor:
    """`values` [batch, …] + `strength` · N(0, 1); the values themselves when the strength is 0."""
    if not strength:
        return values
    noise = [torch.randn(value.shape, generator=generator) for value, generator in zip(values, generators, strict=True)]
    return values + strength * torch.stack(noise).to(values)


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Sigmas in 0…1 moved towards noise: k s / (1 + (k - 1) s) (Esser et al. 2024, arXiv:2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True)
class ShiftByLength:
    """The shift e^mu, with mu on a line through two points (tokens, mu): longer sequences need more noise to lose as much
    (Esser et al. 2024, section 5.3.2). The default is the line of FLUX.1's scheduler, 1.65 at 256² and 3.16 at 1024²."""

    first: tuple[int, float] = (256, 0.5)
    second: tuple[int, float] = (4096, 1.15)

    def __call__(self, tokens: int) -> float:
        (near, low), (far, high) = self.first, self.second
        return math.exp(low + (high - low) * (tokens - near) / (far - near))


Shift = Callable[[int, int], float]
"""(height, width) of latents → how far their sigmas are shifted; 1: not."""


def unshifted(height: int, width: int) -> float:
    return 1.0


@dataclass(frozen=True)
class FamilyShift:
    """How the flow models of a family are shifted: by `shift`. `side` is that of latents at the resolution which a base was
    made for, `patch` that of the denoiser's patches; `line` is what a dynamic shift follows."""

    shift: Shift = unshifted
    side: int = 128
    patch: int = 2
    line: ShiftByLength = ShiftByLength()


UNSHIFTED = FamilyShift()


@dataclass(frozen=True)
class NoiseLevels:
    """A density over the noise schedule, 0 clean and 1 noise, squeezed into the range `minimum`…`maximum`.

    "uniform"; "logit_normal": the sigmoid of N(mean, spread²) (Esser et al. 2024, arXiv:2403.03206, eq. 19); "sigmoid": the
    same without the mean; "mode" with the scale `spread` (eq. 20); "cosine" (their CosMap, eq. 21).
    """

    distribution: str = "uniform"
    mean: float = 0.0
    spread: float = 1.0
    minimum: float = 0.0
    maximum: float = 1.0

    def sample_fraction(self, generator: torch.Generator) -> Tensor:
        """One sample of the density over 0…1, float32 [1], before it is squeezed into the range."""
        if self.distribution in ("logit_normal", "sigmoid"):
            mean = self.mean if self.distribution == "logit_normal" else 0.0
            return (mean + self.spread * torch.randn((1,), generator=generator)).sigmoid()
        uniform = torch.rand((1,), generator=generator)
        if self.distribution == "mode":
            return 1 - uniform - self.spread * (torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)
        if self.distribution == "cosine":
            # 1 - 1 / (tan(πu/2) + 1), written without the tangent's pole.
            sine, cosine = torch.sin(math.pi / 2 * uniform), torch.cos(math.pi / 2 * uniform)
            return sine / (sine + cosine)
        return uniform

    def sample_step(self, generator: torch.Generator, steps: int) -> Tensor:
        """A timestep of a discrete schedule, int64 [1]; the range's ends are rounded to whole steps."""
        first = min(round(self.minimum * steps), steps - 1)
        count = max(1, round(self.maximum * steps) - first)
        if self.distribution == "uniform":
            return torch.randint(first, first + count, (1,), generator=generator)
        return first + (self.sample_fraction(generator) * count).long().clamp(0, count - 1)

    def sample_sigma(self, generator: torch.Generator, shift: float = 1.0) -> Tensor:
        """A sigma of a flow model, float32 [1], shifted before it is squeezed into the range."""
        return self.minimum + (self.maximum - self.minimum) * shifted(self.sample_fraction(generator), shift)
