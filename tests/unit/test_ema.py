"""The running mean of the weights: its values, what is saved and drawn with it, and that it changes no training."""
import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.optimization.ema import ParameterMean
from finetune.trainers.sampling import previews
from safetensors.torch import load_file
from support.running import losses_of, training_of

DECAY = 0.6


def with_mean(make_spec, base, **parts):
    return make_spec(base, **{**dict(
        method=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-2, file_precision="fp32"),
        training=specs.TrainingSpec(steps=6, batch_size=2, resolution=64, ema_decay=DECAY)), **parts})


def test_the_mean_is_that_of_the_formula(tiny_bases, make_spec):
    """m ← d m + (1 - d) p with d = min(decay, 1 - (1 + n)^-3/4), where n counts the updates before; the file holds m."""
    training = training_of(with_mean(make_spec, tiny_bases["sd1"]))
    history, update = [], ParameterMean.update

    def remember(mean):
        history.append({name: value.detach().clone() for name, value in mean.parameters.items()})
        update(mean)

    ParameterMean.update = remember
    try:
        training.execute()
    finally:
        ParameterMean.update = update
    expected = dict(history[0])  # the start has no part in it
    for number, values in enumerate(history[1:], start=1):
        decay = min(DECAY, 1 - (1 + number) ** -0.75)
        expected = {name: decay * mean + (1 - decay) * values[name] for name, mean in expected.items()}
    assert len(history) == 6
    for name, mean in zip(training.mean.parameters, training.mean.model.shadow_params):
        assert torch.allclose(mean, expected[name], atol=1e-6) and not torch.equal(mean, history[-1][name])
        assert torch.equal(training.parameters[name], history[-1][name])  # put back after saving
    file = load_file(training.run.artifact)
    saved = sorted(float(value.double().norm()) for key, value in file.items() if not key.endswith("alpha"))
    assert saved == pytest.approx(sorted(float(value.double().norm()) for value in expected.values()), rel=1e-5)
    assert len(saved) > 10


def test_it_changes_no_training(tiny_bases, make_spec):
    plain, one = losses_of(with_mean(make_spec, tiny_bases["sd1"], name="plain", training=specs.TrainingSpec(
        steps=6, batch_size=2, resolution=64)))
    averaged, other = losses_of(with_mean(
        make_spec, tiny_bases["sd1"], checkpoints=specs.CheckpointSpec(every=2),
        previews=specs.PreviewSpec(prompts=("a",), every=2, sampler_steps=1)))
    assert averaged == plain
    assert any(not torch.equal(value, load_file(other.artifact)[key]) for key, value in load_file(one.artifact).items())


@pytest.mark.parametrize("from_ema", [True, False])
def test_previews_are_drawn_with_the_weights_asked_for(from_ema, tiny_bases, make_spec, monkeypatch):
    training = training_of(with_mean(make_spec, tiny_bases["sd1"], previews=specs.PreviewSpec(
        prompts=("a",), every=3, sampler_steps=1, from_ema=from_ema)))
    draw, drawn_with = previews.make_previews, []

    def look(*arguments):
        drawn_with[:] = [value.detach().clone() for value in training.parameters.values()]
        return draw(*arguments)

    monkeypatch.setattr(previews, "make_previews", look)
    training.execute()
    means, trained = training.mean.model.shadow_params, list(training.parameters.values())
    for last_drawn, mean, value in zip(drawn_with, means, trained, strict=True):
        assert torch.equal(last_drawn, mean if from_ema else value) and not torch.equal(mean, value)


def test_a_failure_inside_puts_the_weights_back():
    value = torch.nn.Parameter(torch.ones(2))
    mean = ParameterMean({"value": value}, 0.9)
    value.data += 1
    with pytest.raises(ValueError), mean.applied():
        assert value.tolist() == [1, 1]
        raise ValueError
    assert value.tolist() == [2, 2]


def test_the_space_for_it_is_asked_for(tiny_bases, make_spec, monkeypatch):
    from finetune.trainers.training import run as module

    asked = []
    monkeypatch.setattr(module, "ensure_space", lambda folder, needed: asked.append(needed))
    for decay in (0.0, 0.9):
        losses_of(make_spec(tiny_bases["sd1"], training=specs.TrainingSpec(
            steps=1, batch_size=2, resolution=64, ema_decay=decay)))
    assert asked[1] == asked[0] / 12 * 16
