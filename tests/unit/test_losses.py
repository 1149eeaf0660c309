"""Weights and errors against closed forms, diffusers' SNR and kohya's formulas written again."""
import math

import pytest
import torch
from finetune.trainers.objectives.losses import (
    debiased_weight,
    elementwise_error,
    huber_threshold,
    mask_weight,
    min_snr_weight,
    weighted_loss,
)
from finetune.trainers.objectives.noise import scaled_linear_alphas

TIMESTEPS = torch.tensor([0, 1, 200, 500, 800, 999])


def snr():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    return compute_snr(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), TIMESTEPS)


def test_snr_is_that_of_diffusers():
    alphas = scaled_linear_alphas()[TIMESTEPS]
    torch.testing.assert_close(alphas / (1 - alphas), snr(), rtol=1e-4, atol=0)


def test_min_snr_weights():
    values = torch.tensor([0.0, 0.1, 5.0, 50.0])
    torch.testing.assert_close(min_snr_weight(values, 5.0, "epsilon"), torch.tensor([1.0, 1.0, 1.0, 0.1]))
    torch.testing.assert_close(min_snr_weight(values, 5.0, "v_prediction"), torch.tensor([0, 0.1 / 1.1, 5 / 6, 5 / 51]))


def test_min_snr_weighs_the_same_clean_error_alike_for_epsilon_and_v():
    """An error d of the clean latents is √SNR · d in epsilon and √(SNR + 1) · d in v (Salimans & Ho 2022)."""
    values = snr()
    epsilon = min_snr_weight(values, 5.0, "epsilon") * values
    v = min_snr_weight(values, 5.0, "v_prediction") * (values + 1)
    torch.testing.assert_close(epsilon, v)
    torch.testing.assert_close(epsilon, values.clamp(max=5.0))


def test_debiased_weights():
    values = snr()
    assert values[0] > 1000 > values[1]  # the limit acts on the first timestep only
    expected = [1 / math.sqrt(min(value, 1000)) for value in values.tolist()]
    torch.testing.assert_close(debiased_weight(values, "epsilon"), torch.tensor(expected))
    expected = [1 / (min(value, 1000) + 1) for value in values.tolist()]
    torch.testing.assert_close(debiased_weight(values, "v_prediction"), torch.tensor(expected))
    assert debiased_weight(torch.zeros(1), "v_prediction") == 1


def test_huber_thresholds_are_kohyas():
    """Written again from timesteps and the noise of the variance-exploding form, sigma = √((1 - a) / a)."""
    alphas, c = scaled_linear_alphas()[TIMESTEPS], 0.1
    arguments = alphas.sqrt(), (1 - alphas).sqrt(), TIMESTEPS / 1000
    sigmas = ((1.0 - alphas) / alphas) ** 0.5
    torch.testing.assert_close(huber_threshold(c, "snr", *arguments), (1 - c) / (1 + sigmas) ** 2 + c)
    decay = -math.log(c) / 1000
    torch.testing.assert_close(huber_threshold(c, "exponential", *arguments), torch.exp(-decay * TIMESTEPS))
    assert (huber_threshold(c, "constant", *arguments) == c).all()
    pure = torch.zeros(1), torch.ones(1), torch.ones(1)
    assert [huber_threshold(c, name, *pure).item() for name in ("constant", "exponential", "snr")] == pytest.approx([c] * 3)


def test_huber_is_square_for_small_and_straight_for_large_errors():
    error = torch.tensor([1e-5, 1e-3, 0.5, 100.0, -100.0, 100.5]).reshape(6, 1, 1, 1)
    c = torch.full((6,), 0.1)
    values = elementwise_error(error, "huber", c).flatten()
    torch.testing.assert_close(values[:2], error.flatten()[:2] ** 2, rtol=1e-4, atol=0)
    assert values[2] == pytest.approx(2 * 0.1 * (math.sqrt(0.5**2 + 0.1**2) - 0.1), rel=1e-5)
    assert values[3] == values[4] == pytest.approx(2 * 0.1 * 100, rel=2e-3)
    assert (values[5] - values[3]) / 0.5 == pytest.approx(2 * 0.1, rel=1e-3)  # L1's slope, 2c
    zero = torch.zeros((1, 1, 1, 1), requires_grad=True)
    elementwise_error(zero, "huber", c[:1]).sum().backward()
    assert zero.grad == 0


def test_huber_uses_each_samples_own_threshold():
    error = torch.full((2, 3, 4, 4), 2.0)
    values = elementwise_error(error, "huber", torch.tensor([0.1, 1.0]))
    expected = [2 * c * (math.sqrt(4 + c * c) - c) for c in (0.1, 1.0)]
    assert [value.unique().item() for value in values] == pytest.approx(expected)


def test_l1_and_l2():
    error = torch.tensor([-2.0, 0.5]).reshape(2, 1, 1, 1)
    assert elementwise_error(error, "l1").flatten().tolist() == [2.0, 0.5]
    assert elementwise_error(error, "l2").flatten().tolist() == [4.0, 0.25]


def test_mask_weight_is_one_on_white_and_the_given_weight_on_black():
    assert mask_weight(torch.tensor([1.0, 0.0, 0.5]), 0.1).tolist() == pytest.approx([1.0, 0.1, 0.55])


@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1, 1.0])
def test_an_error_outside_the_mask_counts_exactly_its_weight(loss, unmasked_weight):
    """The same error inside and outside; and the gradient, which is what trains, as well."""
    masks = torch.zeros((2, 1, 4, 6))
    masks[:, :, :, :3] = 1
    target, weight, threshold = torch.zeros((2, 3, 4, 6)), torch.tensor([1.0, 0.5]), torch.tensor([0.1, 0.2])

    def value_and_gradient(columns):
        prediction = torch.zeros((2, 3, 4, 6))
        prediction[:, :, :, columns] = 0.7
        prediction.requires_grad_()
        value = weighted_loss(prediction, target, weight, loss, threshold, masks, unmasked_weight)
        value.backward()
        return value.item(), prediction.grad[:, :, :, columns].sum().item()

    inside, outside = value_and_gradient(slice(0, 3)), value_and_gradient(slice(3, 6))
    assert inside[0] > 0
    assert outside == pytest.approx([unmasked_weight * each for each in inside])


def test_a_mask_of_ones_changes_nothing_and_half_a_mask_halves():
    """The error is averaged over the whole image, masked or not."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn((2, 4, 8, 8), generator=generator) for _ in range(2))
    weight = torch.tensor([0.3, 2.0])
    plain = weighted_loss(prediction, target, weight)
    assert torch.equal(plain, weighted_loss(prediction, target, weight, masks=torch.ones((2, 1, 8, 8)), unmasked_weight=0.1))
    by_hand = sum(weight[i] * (prediction[i] - target[i]).square().mean() for i in range(2)) / 2
    torch.testing.assert_close(plain, by_hand)
    half = torch.zeros((2, 1, 8, 8))
    half[:, :, 4:] = 1
    masked = weighted_loss(prediction, target, weight, masks=half, unmasked_weight=0.0)
    lower = weighted_loss(prediction[:, :, 4:], target[:, :, 4:], weight)
    torch.testing.assert_close(masked, lower / 2)


def test_half_precision_predictions_are_compared_in_float32():
    prediction, target = torch.full((1, 1, 2, 2), 3e-4, dtype=torch.float16), torch.zeros((1, 1, 2, 2))
    value = weighted_loss(prediction, target, torch.ones(1, dtype=torch.float16))
    assert value.dtype == torch.float32 and value.item() == pytest.approx(9e-8, rel=1e-2)  # its square is 0 in float16
