"""Noising, targets and weights against closed forms."""
import math

import pytest
import torch
from finetune.trainers import randomness
from finetune.trainers.objectives.noise import FamilyShift, ShiftByLength, sample_noise, scaled_linear_alphas
from finetune.trainers.objectives.objective import (
    DiscreteObjective,
    FlowObjective,
    chosen_shift,
    make_objective,
    objective_notes,
)
from finetune.trainers.spec import ObjectiveSpec

LATENTS = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))


def generators(step=0):
    return [randomness.generator(7, randomness.NOISE, step, sample) for sample in range(len(LATENTS))]


def test_schedule_is_that_of_stable_diffusion():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    torch.testing.assert_close(scaled_linear_alphas(), scheduler.alphas_cumprod)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noised_latents_and_target_give_the_clean_latents_back(prediction):
    alphas = scaled_linear_alphas()
    noised = DiscreteObjective(alphas, prediction).noise(LATENTS, generators())
    a = alphas[noised.timesteps].reshape(-1, 1, 1, 1)
    if prediction == "epsilon":
        clean = (noised.latents - (1 - a).sqrt() * noised.target) / a.sqrt()
    else:
        clean = a.sqrt() * noised.latents - (1 - a).sqrt() * noised.target
    torch.testing.assert_close(clean, LATENTS, rtol=1e-3, atol=1e-3)


def test_flow_target_leads_from_noise_to_the_clean_latents():
    noised = FlowObjective(ObjectiveSpec(flow_shift=3.0)).noise(LATENTS, generators())
    sigma = (noised.timesteps / 1000).reshape(-1, 1, 1, 1)
    assert ((sigma > 0) & (sigma < 1)).all()
    torch.testing.assert_close(noised.latents - sigma * noised.target, LATENTS, rtol=1e-4, atol=1e-4)


def test_flow_shift_moves_the_median_as_the_formula_says():
    latents = torch.zeros((4001, 1, 1, 1))
    draws = [randomness.generator(1, 0, sample) for sample in range(len(latents))]
    median = FlowObjective(ObjectiveSpec(flow_shift=3.0)).noise(latents, draws).timesteps.median() / 1000
    assert median == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=0.02)


def test_flow_levels_are_shifted_by_the_family_unless_the_settings_say_how_far():
    asked, latents = [], torch.zeros((3, 4, 6, 8))

    def family(height, width):
        asked.append((height, width))
        return 3.0

    def timesteps(**controls):
        return make_objective("flow", None, ObjectiveSpec(**controls), FamilyShift(family)).noise(
            latents, generators()).timesteps

    by_family, by_settings, unshifted = timesteps(), timesteps(flow_shift=5.0), timesteps(flow_shift=1.0)
    assert asked == [(6, 8)]
    sigma = unshifted / 1000
    torch.testing.assert_close(by_family / 1000, 3 * sigma / (1 + 2 * sigma))
    torch.testing.assert_close(by_settings / 1000, 5 * sigma / (1 + 4 * sigma))


@pytest.mark.parametrize("mode, shift, small, native, wide", [
    ("auto", 0.0, 2.5, 3.0, 3.5), ("auto", 5.0, 5, 5, 5), ("constant", 0.0, 3, 3, 3), ("constant", 2.0, 2, 2, 2),
    ("resolution", 0.0, 1.5, 3, 3 * 2**0.5), ("resolution", 1.0, 0.5, 1, 2**0.5),
    ("dynamic", 0.0, math.exp(0.5 + 0.65 * (1024 - 256) / 3840), math.exp(1.15), math.exp(0.5 + 0.65 * (8192 - 256) / 3840)),
])
def test_what_a_shift_follows(mode, shift, small, native, wide):
    """Images of 512 × 512, 1024 × 1024 and 2048 × 1024, as latents of an eighth and patches of two latents; the family was
    made for 1024 and shifts by 3 there."""
    family = FamilyShift(lambda height, width: 2.0 + (height + width) / 256, side=128, patch=2)
    settings = ObjectiveSpec(flow_shift_mode=mode, flow_shift=shift)
    found = [chosen_shift(settings, family, *size) for size in ((64, 64), (128, 128), (256, 128))]
    assert found == pytest.approx([small, native, wide])


@pytest.mark.parametrize("line, shift", [
    (ShiftByLength(), 1.15), (ShiftByLength(second=(8192, 0.9)), 0.5 + 0.4 * 3840 / 7936)])
def test_a_dynamic_shift_counts_packed_tokens_on_the_line_of_the_family(line, shift):
    """1024² are 4096 tokens of 16 × 16 pixels, whether latents are an eighth and patches two, or a sixteenth and one."""
    settings = ObjectiveSpec(flow_shift_mode="dynamic")
    for side, patch in ((128, 2), (64, 1)):
        family = FamilyShift(side=side, patch=patch, line=line)
        assert chosen_shift(settings, family, side, side) == pytest.approx(math.exp(shift))


@pytest.mark.parametrize("weighting", ["none", "sigma_sqrt", "cosmap"])
def test_flow_is_weighted_as_by_diffusers(weighting):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = torch.tensor([0.001, 0.1, 0.5, 0.9, 1.0])
    latents = torch.zeros((5, 4, 2, 2))
    noised = make_objective("flow", None, ObjectiveSpec(flow_weighting=weighting)).mix(latents, latents + 1, sigmas)
    torch.testing.assert_close(noised.weight, compute_loss_weighting_for_sd3(weighting, sigmas))
    nothing = make_objective("flow", None, ObjectiveSpec(flow_weighting=weighting)).mix(
        latents, latents + 1, torch.zeros(5))
    assert torch.isfinite(nothing.weight).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_levels_span_the_schedule_and_mix_noises_at_them(prediction):
    """As validation asks for them, whatever the settings say about the levels of training."""
    alphas, noise = scaled_linear_alphas(), torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(3))
    settings = ObjectiveSpec(minimum_timestep=0.5, noise_offset=0.3, flow_shift_mode="resolution")
    objective = make_objective(prediction, alphas, settings, FamilyShift(lambda height, width: 9.0))
    noised = objective.mix(LATENTS, noise, objective.levels(torch.tensor([0.0, 0.25, 0.999], dtype=torch.float64)))
    assert noised.timesteps.tolist() == pytest.approx([0.0, 250.0, 999.0])
    a = alphas[[0, 250, 999]].reshape(3, 1, 1, 1)
    s = torch.tensor([0.0, 0.25, 0.999]).reshape(3, 1, 1, 1)
    alpha, sigma = (1 - s, s) if prediction == "flow" else (a.sqrt(), (1 - a).sqrt())
    torch.testing.assert_close(noised.latents, alpha * LATENTS + sigma * noise)
    target = {"epsilon": noise, "v_prediction": alpha * noise - sigma * LATENTS, "flow": noise - LATENTS}[prediction]
    torch.testing.assert_close(noised.target, target)


def test_noise_offset_shifts_whole_channels():
    def draws():
        return [randomness.generator(3, sample) for sample in range(500)]

    latents = torch.zeros((500, 4, 8, 8))
    difference = sample_noise(latents, draws(), 0.5) - sample_noise(latents, draws(), 0.0)
    assert torch.allclose(difference.std(dim=(2, 3)), torch.zeros(500, 4), atol=1e-6)
    assert difference[:, :, 0, 0].std() == pytest.approx(0.5, rel=0.05)


ALL = dict(noise_offset=0.1, multires_iterations=6, input_perturbation=0.1, image_noise=0.05, loss="huber",
           minimum_timestep=0.1, maximum_timestep=0.9, distribution="logit_normal", distribution_mean=0.5,
           distribution_spread=1.5)


@pytest.mark.parametrize("prediction, settings", [
    ("epsilon", ObjectiveSpec()), ("epsilon", ObjectiveSpec(**ALL, debiased=True)), ("flow", ObjectiveSpec(**ALL)),
    ("v_prediction", ObjectiveSpec(**ALL, min_snr_gamma=5.0, zero_terminal_snr=True)),
])
def test_a_sample_is_noised_alike_in_any_batch(prediction, settings):
    objective = make_objective(prediction, scaled_linear_alphas(), settings)
    together, alone = objective.noise(LATENTS, generators()), objective.noise(LATENTS[1:2], generators()[1:2])
    for name in ("latents", "timesteps", "target", "weight", "threshold"):
        one, other = getattr(together, name), getattr(alone, name)
        assert one is other is None or torch.equal(one[1:2], other), name
    assert (together.threshold is not None) == (settings.loss == "huber")


def test_loss_is_the_weighted_mean_of_samples():
    objective = DiscreteObjective(scaled_linear_alphas(), "epsilon", ObjectiveSpec(min_snr_gamma=5.0))
    noised = objective.noise(LATENTS, generators())
    prediction = torch.zeros_like(LATENTS)
    expected = sum(noised.weight[i] * noised.target[i].square().mean() for i in range(3)) / 3
    torch.testing.assert_close(objective.loss(prediction, noised), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_a_control_that_is_off_changes_no_number(prediction):
    """Settings of controls that are off draw nothing, and controls that only weigh leave the noise as it is."""
    plain = make_objective(prediction, scaled_linear_alphas(), ObjectiveSpec()).noise(LATENTS, generators())
    others = ObjectiveSpec(multires_discount=0.9, huber_c=0.5, huber_schedule="constant", unmasked_weight=0.7, loss="huber",
                           debiased=prediction != "flow")
    same = make_objective(prediction, scaled_linear_alphas(), others).noise(LATENTS, generators())
    for name in ("latents", "timesteps", "target"):
        assert torch.equal(getattr(plain, name), getattr(same, name)), name


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_controls_draw_in_a_fixed_order(prediction):
    """Each control that is switched on draws after those before it: noise level, noise, offset, resolutions, disturbance."""
    alphas = scaled_linear_alphas()

    def noised(**controls):
        return make_objective(prediction, alphas, ObjectiveSpec(**controls)).noise(LATENTS, generators())

    plain, offset, perturbed = noised(), noised(noise_offset=0.1), noised(noise_offset=0.1, input_perturbation=0.1)
    both = noised(noise_offset=0.1, input_perturbation=0.1, image_noise=0.2)
    assert torch.equal(plain.timesteps, both.timesteps)
    assert torch.equal(offset.target, perturbed.target)  # the target does not know the perturbation
    assert not torch.equal(offset.latents, perturbed.latents)
    if prediction == "epsilon":
        assert torch.equal(perturbed.target, both.target)  # nor, with epsilon, what the image was


def test_input_perturbation_and_image_noise_by_the_formula():
    alphas, perturbation, image = scaled_linear_alphas(), 0.1, 0.3
    objective = make_objective("v_prediction", alphas, ObjectiveSpec(input_perturbation=perturbation, image_noise=image))
    noised = objective.noise(LATENTS, generators())
    for number, generator in enumerate(generators()):
        a = alphas[torch.randint(0, 1000, (1,), generator=generator)]
        noise, unknown, on_image = (torch.randn(LATENTS.shape[1:], generator=generator) for _ in range(3))
        clean = LATENTS[number] + image * on_image
        mixed = noise + perturbation * unknown
        torch.testing.assert_close(noised.latents[number], a.sqrt() * clean + (1 - a).sqrt() * mixed)
        torch.testing.assert_close(noised.target[number], a.sqrt() * noise - (1 - a).sqrt() * clean)


def test_flow_with_perturbation_by_the_formula():
    noised = make_objective("flow", None, ObjectiveSpec(input_perturbation=0.2)).noise(LATENTS, generators())
    for number, generator in enumerate(generators()):
        s = torch.randn((1,), generator=generator).sigmoid()
        noise, unknown = (torch.randn(LATENTS.shape[1:], generator=generator) for _ in range(2))
        torch.testing.assert_close(noised.latents[number], (1 - s) * LATENTS[number] + s * (noise + 0.2 * unknown))
        torch.testing.assert_close(noised.target[number], noise - LATENTS[number])


def test_pure_noise_is_weighted_without_a_division_by_zero():
    """With zero terminal SNR the last step holds nothing of the image, and its target is the image itself."""
    latents = LATENTS[:1].repeat(50, 1, 1, 1)
    for controls in ({}, {"min_snr_gamma": 5.0}, {"debiased": True}):
        objective = make_objective("v_prediction", scaled_linear_alphas(), ObjectiveSpec(
            zero_terminal_snr=True, minimum_timestep=0.999, loss="huber", **controls))
        noised = objective.noise(latents, [randomness.generator(1, sample) for sample in range(50)])
        assert (noised.timesteps == 999).all()
        assert torch.isfinite(noised.weight).all() and torch.isfinite(noised.threshold).all()
        torch.testing.assert_close(noised.target, -latents)
        assert torch.isfinite(objective.loss(torch.zeros_like(latents), noised))
        assert noised.latents.std() == pytest.approx(1, abs=0.05)
        assert (noised.weight == (0.0 if "min_snr_gamma" in controls else 1.0)).all()


@pytest.mark.parametrize("prediction, controls, words", [
    ("epsilon", {"flow_shift": 3.0}, "flow_shift is not read"),
    ("flow", {"min_snr_gamma": 5.0}, "min_snr_gamma is not read"),
    ("epsilon", {"flow_shift_mode": "dynamic"}, "flow_shift_mode is not read"),
    ("v_prediction", {"flow_weighting": "cosmap"}, "flow_weighting is not read"),
    ("flow", {"flow_shift_mode": "dynamic", "flow_shift": 2.0}, "flow_shift is not read: with flow_shift_mode dynamic"),
    ("flow", {"distribution": "sigmoid", "distribution_mean": 1.0}, "distribution_mean is not read by"),
    ("epsilon", {"distribution_mean": 1.0}, "distribution_mean is not read by the distribution uniform"),
    ("flow", {"distribution": "cosine", "distribution_spread": 2.0}, "distribution_spread is not read by"),
    ("v_prediction", {"zero_terminal_snr": True, "min_snr_gamma": 5.0}, "gives pure noise the weight 0"),
])
def test_settings_that_are_not_read_are_noted(prediction, controls, words):
    [note] = objective_notes(prediction, ObjectiveSpec(**controls))
    assert words in note


@pytest.mark.parametrize("prediction, controls", [
    ("epsilon", {"min_snr_gamma": 5.0}), ("flow", {"flow_shift": 3.0, "distribution_mean": 1.0, "distribution_spread": 2.0}),
    ("epsilon", {"distribution": "mode", "distribution_spread": 1.29}), ("v_prediction", {"zero_terminal_snr": True}),
    ("flow", {"flow_shift_mode": "resolution", "flow_shift": 3.0, "flow_weighting": "cosmap", "distribution": "sigmoid",
              "distribution_spread": 2.0}),
])
def test_settings_that_are_read_need_no_note(prediction, controls):
    assert objective_notes(prediction, ObjectiveSpec(**controls)) == []


def test_seeds_are_distinct_and_stable():
    seeds = {randomness.derive(0, stream, step, sample)
             for stream in range(3) for step in range(20) for sample in range(20)}
    assert len(seeds) == 1200
    assert randomness.derive(0, 1, 2) == randomness.derive(0, 1, 2) != randomness.derive(1, 1, 2)
    assert 0 <= randomness.derive(2**63 - 1, 5) < 2**63
