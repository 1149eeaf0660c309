"""Noising, targets and weights against closed forms."""
import pytest
import torch
from finetune.trainers import randomness
from finetune.trainers.objectives import (
    DiscreteObjective,
    FlowObjective,
    draw_noise,
    make_objective,
    min_snr_weight,
    scaled_linear_alphas,
    weighted_loss,
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
    noised = FlowObjective(shift=3.0).noise(LATENTS, generators())
    sigma = (noised.timesteps / 1000).reshape(-1, 1, 1, 1)
    assert ((0 < sigma) & (sigma < 1)).all()
    torch.testing.assert_close(noised.latents - sigma * noised.target, LATENTS, rtol=1e-4, atol=1e-4)


def test_flow_shift_moves_the_median_as_the_formula_says():
    latents = torch.zeros((4001, 1, 1, 1))
    draws = [randomness.generator(1, 0, sample) for sample in range(len(latents))]
    median = FlowObjective(shift=3.0).noise(latents, draws).timesteps.median() / 1000
    assert median == pytest.approx(3 * 0.5 / (1 + 2 * 0.5), abs=0.02)


def test_min_snr_weights():
    snr = torch.tensor([0.1, 5.0, 50.0])
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 0.1]))
    torch.testing.assert_close(min_snr_weight(snr, 5.0, "v_prediction"), torch.tensor([0.1 / 1.1, 5 / 6, 5 / 51]))


def test_noise_offset_shifts_whole_channels():
    def draws():
        return [randomness.generator(3, sample) for sample in range(500)]

    latents = torch.zeros((500, 4, 8, 8))
    difference = draw_noise(latents, draws(), 0.5) - draw_noise(latents, draws(), 0.0)
    assert torch.allclose(difference.std(dim=(2, 3)), torch.zeros(500, 4), atol=1e-6)
    assert difference[:, :, 0, 0].std() == pytest.approx(0.5, rel=0.05)


def test_a_sample_is_noised_alike_in_any_batch():
    objective = make_objective("epsilon", scaled_linear_alphas(), ObjectiveSpec())
    together, alone = objective.noise(LATENTS, generators()), objective.noise(LATENTS[1:2], generators()[1:2])
    torch.testing.assert_close(together.latents[1:2], alone.latents)
    assert together.timesteps[1] == alone.timesteps[0]


def test_weighted_loss_is_the_weighted_mean_of_samples():
    noised = DiscreteObjective(scaled_linear_alphas(), "epsilon", min_snr_gamma=5.0).noise(LATENTS, generators())
    prediction = torch.zeros_like(LATENTS)
    expected = sum(noised.weight[i] * noised.target[i].square().mean() for i in range(3)) / 3
    torch.testing.assert_close(weighted_loss(prediction, noised), expected)


def test_seeds_are_distinct_and_stable():
    seeds = {randomness.derive(0, stream, step, sample)
             for stream in range(3) for step in range(20) for sample in range(20)}
    assert len(seeds) == 1200
    assert randomness.derive(0, 1, 2) == randomness.derive(0, 1, 2) != randomness.derive(1, 1, 2)
    assert 0 <= randomness.derive(2**63 - 1, 5) < 2**63
