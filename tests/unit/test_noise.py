"""Noise of several resolutions, the zero-terminal schedule, and densities of noise levels, against their formulas."""
import math

import numpy as np
import pytest
import torch
from finetune.trainers import randomness
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.objectives.noise import NoiseLevels, sample_noise, scaled_linear_alphas, with_zero_terminal_snr
from finetune.trainers.objectives.objective import make_objective

DRAWS = 10_000


def draws(count, stream=0):
    return [randomness.generator(5, stream, sample) for sample in range(count)]


# ---- multi-resolution noise ----------------------------------------------------------------------------------------

def spectrum(noise):
    """Mean power of the lowest frequencies (at most two periods a side, the constant included) and of all."""
    power = torch.fft.fft2(noise, norm="ortho").abs().square().mean(dim=(0, 1))
    frequency = torch.fft.fftfreq(noise.shape[-1]).abs() * noise.shape[-1]
    low = (frequency[:, None] <= 2) & (frequency[None, :] <= 2)
    return power[low].mean().item(), power.mean().item()


def test_multires_noise_has_unit_variance_and_more_low_frequencies():
    latents = torch.zeros((200, 4, 32, 32))
    white, mixed = sample_noise(latents, draws(200)), sample_noise(latents, draws(200), iterations=8, discount=0.3)
    assert mixed.mean() == pytest.approx(0, abs=0.02)
    torch.testing.assert_close(mixed.square().mean(dim=(1, 2, 3)), torch.ones(200))  # every sample by itself
    (low_white, all_white), (low_mixed, all_mixed) = spectrum(white), spectrum(mixed)
    assert all_white == pytest.approx(1, abs=0.01) and low_white == pytest.approx(1, abs=0.05)
    assert all_mixed == pytest.approx(1, abs=0.01) and low_mixed > 1.3 * low_white
    stronger = spectrum(sample_noise(latents, draws(200), iterations=8, discount=0.6))[0]
    assert stronger > 1.5 * low_mixed


def test_multires_noise_by_its_formula():
    """Written again: white noise + Σ discount^i · noise at 1 / r^i of the size, r in 2…4, until a side is 1."""
    latents, [generator] = torch.zeros((1, 4, 24, 16)), draws(1)
    total, levels = torch.randn((4, 24, 16), generator=generator), 0
    for level in range(10):
        ratio = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        height, width = max(1, int(24 / ratio)), max(1, int(16 / ratio))
        small = torch.randn((1, 4, height, width), generator=generator)
        total += 0.4**level * torch.nn.Upsample(size=(24, 16), mode="bilinear")(small)[0]
        levels += 1
        if height == 1 or width == 1:
            break
    total /= (total**2).mean() ** 0.5
    assert 2 < levels < 10
    torch.testing.assert_close(sample_noise(latents, draws(1), iterations=10, discount=0.4)[0], total)


def test_the_offset_keeps_its_strength_beside_other_noise():
    latents = torch.zeros((300, 4, 8, 8))
    plain = sample_noise(latents, draws(300), iterations=6)
    # The offset is drawn before the resolutions, so those differ; the variance of channel means tells its strength.
    shifted = sample_noise(latents, draws(300), offset=0.5, iterations=6)
    gain = shifted.mean(dim=(2, 3)).var() - plain.mean(dim=(2, 3)).var()
    assert gain.item() == pytest.approx(0.25, abs=0.05)


# ---- zero terminal SNR ---------------------------------------------------------------------------------------------

def test_zero_terminal_schedule_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)
    ours = with_zero_terminal_snr(scaled_linear_alphas())
    torch.testing.assert_close(ours, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours[-1] == 0 and ours[0] == pytest.approx(scaled_linear_alphas()[0].item(), rel=1e-6)
    torch.testing.assert_close(with_zero_terminal_snr(ours), ours)  # a base that is so already stays so


@pytest.mark.parametrize("family, refused", [("sd1", True), ("sd2", False), ("sdxl", True)])
def test_zero_terminal_snr_needs_v(family, refused, tiny_bases, make_spec):
    parts = {**dict(make_spec(tiny_bases[family])), "objective": specs.ObjectiveSpec(zero_terminal_snr=True)}
    if not refused:
        assert specs.checked(specs.RunSpec, **parts).objective.zero_terminal_snr
        return
    with pytest.raises(UserError, match="Zero_terminal_snr needs a model that predicts v, and 'tiny .*' predicts epsilon"):
        specs.checked(specs.RunSpec, **parts)


def test_previews_of_a_zero_terminal_model_start_from_pure_noise(tiny_bases):
    from finetune.trainers import families

    base = tiny_bases["sd2"]
    family = families.get("sd2")
    plain, rescaled = family.sampler(base).scheduler, family.sampler(base, True).scheduler
    for sampler in (plain, rescaled):
        sampler.set_timesteps(10)
    assert plain.timesteps[0] < 999 and rescaled.timesteps[0] == 999
    assert rescaled.alphas_cumprod[-1] < 1e-7 < 1e-3 < plain.alphas_cumprod[-1]
    trained = with_zero_terminal_snr(family.alphas_cumprod(base))
    torch.testing.assert_close(rescaled.alphas_cumprod[:-1].float(), trained[:-1], rtol=1e-4, atol=1e-6)


# ---- densities of noise levels -------------------------------------------------------------------------------------

def logit_normal(t, mean, spread):
    """Esser et al. 2024, eq. 19."""
    logit = np.log(t / (1 - t))
    return np.exp(-((logit - mean) ** 2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi) * t * (1 - t))


def cosine(t, mean, spread):
    """Esser et al. 2024, eq. 21."""
    return 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2)


def mode(t, mean, scale):
    """Density of f(u) = 1 - u - s (cos²(πu/2) - 1 + u), eq. 20: |du / df|, with u(f) by interpolation."""
    u = np.linspace(0, 1, 100_001)
    f = 1 - u - scale * (np.cos(math.pi * u / 2) ** 2 - 1 + u)
    slope = np.abs(-1 - scale * (-math.pi / 2 * np.sin(math.pi * u) + 1))
    return 1 / np.interp(t, f[::-1], slope[::-1])


def uniform(t, mean, spread):
    return np.ones_like(t)


DENSITIES = [
    ("uniform", 0.0, 1.0, uniform), ("logit_normal", 0.0, 1.0, logit_normal), ("logit_normal", -0.8, 0.5, logit_normal),
    ("logit_normal", 1.0, 1.6, logit_normal), ("mode", 0.0, 1.29, mode), ("mode", 0.0, 0.4, mode),
    ("cosine", 0.0, 1.0, cosine), ("sigmoid", 0.7, 1.6, lambda t, mean, spread: logit_normal(t, 0.0, spread)),
]


@pytest.mark.parametrize("name, mean, spread, density", DENSITIES)
@pytest.mark.parametrize("kind", ["flow", "discrete"])
@pytest.mark.parametrize("least, most", [(0.0, 1.0), (0.2, 0.7)])
def test_noise_levels_follow_their_density(name, mean, spread, density, kind, least, most):
    """Quantiles of 10,000 draws, against the integral of the density, squeezed into the range."""
    levels, [generator] = NoiseLevels(name, mean, spread, least, most), draws(1)
    if kind == "flow":
        drawn = torch.cat([levels.sample_sigma(generator) for _ in range(DRAWS)]).numpy()
        assert drawn.min() >= least and drawn.max() <= most
    else:
        steps = torch.cat([levels.sample_step(generator, 1000) for _ in range(DRAWS)])
        assert steps.dtype == torch.int64 and steps.min() >= 1000 * least and steps.max() < 1000 * most
        drawn = (steps.numpy() + 0.5) / 1000
    t = (np.arange(200_000) + 0.5) / 200_000
    cumulative = np.cumsum(density(t, mean, spread)) / 200_000
    assert cumulative[-1] == pytest.approx(1, abs=2e-3)  # it is a density
    for fraction in (0.05, 0.25, 0.5, 0.75, 0.95):
        expected = least + (most - least) * np.interp(fraction, cumulative, t)
        below = (drawn <= expected).mean()
        # Five standard errors of a binomial share, and half a timestep.
        assert below == pytest.approx(fraction, abs=5 * math.sqrt(fraction * (1 - fraction) / DRAWS) + 0.003), fraction


def test_a_range_reaches_its_ends_and_not_beyond():
    levels = NoiseLevels(minimum=0.25, maximum=0.26)
    steps = [levels.sample_step(generator, 1000).item() for generator in draws(500)]
    assert set(steps) == set(range(250, 260))
    for range_ in ((0.0, 0.0004), (0.9999, 1.0), (0.5, 0.5001)):
        narrow = NoiseLevels("logit_normal", 0, 1, *range_)
        assert {narrow.sample_step(generator, 1000).item() for generator in draws(50)} == {min(round(1000 * range_[0]), 999)}
    extreme = NoiseLevels("logit_normal", 5, 5)
    assert max(extreme.sample_step(generator, 1000).item() for generator in draws(2000)) == 999


def test_the_range_of_flow_models_holds_after_the_shift():
    settings = specs.ObjectiveSpec(flow_shift=5.0, minimum_timestep=0.3, maximum_timestep=0.6, distribution="uniform")
    noised = make_objective("flow", None, settings).noise(torch.zeros((4000, 1, 1, 1)), draws(4000))
    sigma = noised.timesteps / 1000
    assert sigma.min() >= 0.3 and sigma.max() <= 0.6
    median = 0.3 + 0.3 * (5 * 0.5 / (1 + 4 * 0.5))
    assert sigma.median().item() == pytest.approx(median, abs=0.01)


def test_settings_reach_the_noise_levels():
    """Discrete models draw uniformly by themselves, flow models logit-normally; a choice holds for both."""
    latents = torch.zeros((3000, 1, 1, 1))

    def shares(prediction, **controls):
        objective = make_objective(prediction, scaled_linear_alphas(), specs.ObjectiveSpec(**controls))
        return (objective.noise(latents, draws(3000)).timesteps.float() / 1000).std().item()

    wide, bell = 1 / math.sqrt(12), torch.randn(100_000).sigmoid().std().item()
    assert shares("epsilon") == pytest.approx(wide, abs=0.01)
    assert shares("flow", distribution="uniform") == pytest.approx(wide, abs=0.01)
    assert shares("flow") == pytest.approx(bell, abs=0.01)
    assert shares("v_prediction", distribution="logit_normal") == pytest.approx(bell, abs=0.01)
    assert shares("epsilon", distribution="logit_normal", distribution_spread=0.3) < 0.6 * bell


def test_a_mode_that_folds_over_is_refused():
    with pytest.raises(UserError, match="too large for the distribution mode"):
        specs.checked(specs.ObjectiveSpec, distribution="mode", distribution_spread=1.8)
    levels = NoiseLevels("mode", 0, 2 / (math.pi - 2))
    assert all(0 <= levels.sample_fraction(generator).item() <= 1 for generator in draws(1000))
