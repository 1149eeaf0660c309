"""Samplers against diffusers', and what each kind of guidance asks of the denoiser."""
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.samplers import FlowSampler
from finetune.trainers.objectives.noise import ShiftByLength
from finetune.trainers.sampling.previews import guided

NOISE = torch.randn((2, 4, 6, 8), generator=torch.Generator().manual_seed(0))


def velocity(latents, timestep):
    """Some smooth function of both."""
    return torch.sin(latents) + timestep / 700


@pytest.mark.parametrize("shift, last", [(1.0, 0.0), (3.0, 0.0), (2.0, 0.02)])
def test_flow_is_sampled_as_by_diffusers(shift, last):
    """Qwen-Image's schedule is stretched, which leaves 0.02 before the last step."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=last or None)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 7, 7))
    theirs = NOISE
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(velocity(theirs, timestep), timestep, theirs).prev_sample
    asked = []

    def shift_of(height, width):
        asked.append((height, width))
        return shift

    ours = FlowSampler(shift_of, last_sigma=last).sample(velocity, NOISE, 7)
    torch.testing.assert_close(ours, theirs)
    assert asked == [(6, 8)]


def test_the_shift_by_length_goes_through_the_points_of_the_published_schedulers():
    """FLUX.1: mu 0.5 at 256 tokens and 1.15 at 4096, which is 1024²; Qwen-Image: 0.9 at 8192."""
    flux, qwen = ShiftByLength(), ShiftByLength(second=(8192, 0.9))
    assert flux((256 // 16) ** 2) == pytest.approx(np.exp(0.5)) and flux((1024 // 16) ** 2) == pytest.approx(3.158, abs=1e-3)
    assert qwen(256) == pytest.approx(np.exp(0.5)) and qwen(8192) == pytest.approx(np.exp(0.9))
    assert flux(2176) == pytest.approx(np.exp(0.825))  # half way


class Asked:
    """A family whose denoiser writes down what it is asked, and predicts the mean of the caption."""

    def __init__(self):
        self.calls = []

    def predict(self, denoiser, latents, timesteps, conditioning):
        self.calls.append((latents, timesteps, conditioning))
        return torch.zeros_like(latents) + conditioning["hidden"].mean(dim=(1, 2))[:, None, None, None]


def asked_by(guidance, strength=2.5) -> tuple[torch.Tensor, list]:
    family = Asked()
    positive = Conditioning({"hidden": torch.full((2, 5, 3), 4.0)})
    negative = Conditioning({"hidden": torch.full((2, 3, 3), 1.0)})
    predict = guided(family, None, FlowSampler(lambda height, width: 1.0, guidance), positive, negative, strength)
    return predict(NOISE, torch.tensor(300.0)), family.calls


def test_classifier_free_guidance_asks_for_both_prompts_in_one_call():
    prediction, [(latents, timesteps, conditioning)] = asked_by("classifier-free")
    assert torch.equal(latents, torch.cat([NOISE, NOISE])) and timesteps.tolist() == [300.0] * 4
    assert conditioning.lengths("hidden") == (3, 3, 5, 5)  # prompts of different lengths are masked
    without = 3 / 5  # three tokens of 1, two of padding
    torch.testing.assert_close(prediction, torch.full_like(NOISE, without + 2.5 * (4 - without)))


@pytest.mark.parametrize("guidance, strength", [("distilled", 2.5), ("none", 2.5), ("classifier-free", 1.0)])
def test_other_guidance_asks_for_the_prompt_alone(guidance, strength):
    prediction, [(latents, timesteps, conditioning)] = asked_by(guidance, strength)
    assert torch.equal(latents, NOISE) and timesteps.tolist() == [300.0] * 2 and (prediction == 4).all()
    if guidance == "distilled":
        assert conditioning["guidance"].tolist() == [2.5, 2.5]
    else:
        assert "guidance" not in conditioning
