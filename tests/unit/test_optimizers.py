"""Every optimizer moves parameters as its library does, leaves stopped groups alone, and resumes exactly."""
import dataclasses
from typing import get_args

import bitsandbytes
import lion_pytorch
import prodigyopt
import pytest
import torch
import transformers.optimization
from accelerate import Accelerator
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.methods.lora import Lora
from finetune.trainers.optimization.optimizers import STATE_BYTES, make_optimizer, require_support
from finetune.trainers.optimization.parameter_group import ParameterGroup
from finetune.trainers.optimization.schedules import make_schedule
from finetune.trainers.training import loop
from safetensors.torch import load_file
from support.running import losses_of, losses_with_a_stop, training_of

NAMES = get_args(specs.OptimizerSpec.model_fields["name"].annotation)
SCHEDULES = get_args(specs.ScheduleSpec.model_fields["name"].annotation)


def spec_of(name, rate=1e-2, **fields):
    return specs.OptimizerSpec(name=name, learning_rate=1.0 if name == "prodigy" else rate, betas=(0.8, 0.95),
                               weight_decay=0.1, epsilon=1e-6, **fields)


def parameters():
    """One tensor large enough for 8-bit moments, and a small one."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((80, 64), (7,))]


def give_gradients(values, step):
    generator = torch.Generator().manual_seed(step + 1)
    for value in values:
        value.grad = torch.randn(value.shape, generator=generator)


def groups_of(values, rates, stops=(1.0, 1.0)):
    return [ParameterGroup(name, rate, {"value": value}, stop)
            for name, rate, value, stop in zip("ab", rates, values, stops)]


def library(name, values, rates):
    """The optimizer as its own documentation calls it."""
    groups = [{"params": [value], "lr": rate} for value, rate in zip(values, rates)]
    betas, decay, epsilon = (0.8, 0.95), 0.1, 1e-6
    if name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, weight_decay=decay, eps=epsilon)
    if name == "adamw_8bit":
        return bitsandbytes.optim.AdamW8bit(groups, betas=betas, weight_decay=decay, eps=epsilon)
    if name == "lion":
        return lion_pytorch.Lion(groups, betas=betas, weight_decay=decay)
    if name == "prodigy":
        return prodigyopt.Prodigy(groups, betas=betas, weight_decay=decay, eps=epsilon, use_bias_correction=True,
                                  safeguard_warmup=True)
    if name == "adafactor":
        return transformers.optimization.Adafactor(groups, lr=1e-3, weight_decay=decay, scale_parameter=False,
                                                   relative_step=False, warmup_init=False)
    return torch.optim.SGD(groups, momentum=0.8, nesterov=True, weight_decay=decay)


@pytest.mark.parametrize("name", NAMES)
def test_first_updates_are_the_library_s(name):
    rates = (1.0, 1.0) if name == "prodigy" else (1e-2, 3e-3)
    ours, theirs, start = parameters(), parameters(), parameters()
    one, other = make_optimizer(spec_of(name), groups_of(ours, rates), 10), library(name, theirs, rates)
    for step in range(3):
        for values, optimizer in ((ours, one), (theirs, other)):
            give_gradients(values, step)
            optimizer.step()
        for mine, its, first in zip(ours, theirs, start):
            # Fused AdamW rounds in another order.
            assert torch.equal(mine, its) or (name == "adamw" and torch.allclose(mine, its, rtol=0, atol=1e-6))
            assert not torch.equal(mine, first)


def test_state_bytes_bound_the_state():
    """The estimate of a checkpoint's size, for a large tensor."""
    assert set(STATE_BYTES) == set(NAMES)
    for name in NAMES:
        value = torch.nn.Parameter(torch.randn(512, 512))
        optimizer = make_optimizer(spec_of(name), groups_of([value], [1e-2]), 10)
        value.grad = torch.randn_like(value)
        optimizer.step()
        flat, queue = 0, [optimizer.state_dict()["state"]]
        while queue:
            each = queue.pop()
            queue += each.values() if isinstance(each, dict) else []
            flat += each.numel() * each.element_size() if isinstance(each, torch.Tensor) else 0
        assert flat <= STATE_BYTES[name] * value.numel() + 10_000, name
        assert name in ("adafactor", "adamw_8bit") or flat >= STATE_BYTES[name] * value.numel(), name


def test_prodigy_takes_rates_as_factors():
    """A group with a tenth of the rate takes a tenth of the step it would take, one with three times the rate three."""
    start, full, partly, more = (parameters() for _ in range(4))
    for value in (*start, *full, *partly, *more):
        value.data *= 1e-3  # the first steps have the size 1e-6, which should not drown in rounding
    for values, rates in ((full, (1.0, 1.0)), (partly, (1.0, 0.1)), (more, (1.0, 3.0))):
        optimizer = make_optimizer(spec_of("prodigy"), groups_of(values, rates), 10)
        give_gradients(values, 0)
        optimizer.step()
        assert [group["lr"] for group in optimizer.param_groups] == list(rates)
    assert torch.equal(full[0], partly[0]) and torch.equal(full[0], more[0])
    assert torch.allclose(partly[1] - start[1], 0.1 * (full[1] - start[1]), rtol=1e-2, atol=1e-10)
    assert torch.allclose(more[1] - start[1], 3 * (full[1] - start[1]), rtol=1e-2, atol=1e-10)
    assert not torch.equal(partly[1], start[1])


def test_prodigy_finds_a_rate():
    """From its first guess of 1e-6 it reaches the minimum of a quadratic at distance 1 within some hundred steps."""
    value = torch.nn.Parameter(torch.zeros(50))
    optimizer = make_optimizer(specs.OptimizerSpec(name="prodigy", learning_rate=1.0, weight_decay=0.0),
                               groups_of([value], [1.0]), 300)
    for _ in range(300):
        value.grad = 2 * (value.detach() - 1)
        optimizer.step()
    assert (value - 1).abs().max() < 0.05 and optimizer.param_groups[0]["d"] > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_group_with_rate_zero_does_not_move(name):
    """Whether its rate was 0 from the start or became so with momentum gathered, and with weight decay on."""
    values = parameters()
    rate = 1.0 if name == "prodigy" else 1e-2
    optimizer = make_optimizer(spec_of(name), groups_of(values, (rate, rate)), 10)
    optimizer.param_groups[1]["lr"] = 0.0
    before = [value.detach().clone() for value in values]
    for step in range(3):
        give_gradients(values, step)
        optimizer.step()
    assert torch.equal(values[1], before[1]) and not torch.equal(values[0], before[0])
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.0, rate
    before = [value.detach().clone() for value in values]
    for step in range(3):
        give_gradients(values, step)
        optimizer.step()
    assert torch.equal(values[0], before[0]) and not torch.equal(values[1], before[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_stopped_group_stays_and_does_not_count(name):
    """Two groups, the second for half of four steps: from then on the first moves as if it were alone."""
    accelerator = Accelerator(cpu=True)
    values, rates = parameters(), (1.0, 1.0) if name == "prodigy" else (1e-2, 1e-2)
    optimizer = make_optimizer(spec_of(name), groups_of(values, rates, (1.0, 0.5)), 4)
    schedule = make_schedule(specs.ScheduleSpec(), optimizer, 4)
    seen = []
    for step in range(4):
        give_gradients(values, step)
        values[1].grad *= 100
        norm = loop.clip(accelerator, optimizer, step, 1.0)
        seen.append((values[1].detach().clone(), float(norm), schedule.get_last_lr()))
        optimizer.step()
        schedule.step()
    assert torch.equal(seen[2][0], values[1]) and not torch.equal(seen[1][0], seen[2][0])
    assert seen[1][1] > 200 > 100 > seen[2][1]  # 7 numbers of about 100 count, then 5120 of about 1 alone
    assert [rates_then[1] for *_, rates_then in seen] == [rates[1], rates[1], 0.0, 0.0]
    assert [rates_then[0] for *_, rates_then in seen] == [rates[0]] * 4


@pytest.mark.parametrize("name", ["adamw", "prodigy"])
def test_a_run_stops_a_group_and_resumes(name, tiny_bases, make_spec, monkeypatch, tmp_path):
    attach, rate = Lora.attach, 1.0 if name == "prodigy" else 1e-2

    def stopping(self, parts, seed):
        shares = {"te": 0.5}
        return [dataclasses.replace(group, stop_at=shares.get(group.name, 1.0)) for group in attach(self, parts, seed)]

    monkeypatch.setattr(Lora, "attach", stopping)
    spec = make_spec(
        tiny_bases["sd1"], optimizer=specs.OptimizerSpec(name=name, learning_rate=rate),
        method=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=rate / 10, file_precision="fp32"),
        checkpoints=specs.CheckpointSpec(every=2),
        training=specs.TrainingSpec(steps=4, batch_size=2, resolution=64))
    whole, run = losses_of(spec)
    middle = load_file(run.checkpoint_folder(2) / f"{run.name}_step000002.safetensors")
    end = load_file(run.artifact)
    text = [key for key in end if key.startswith("lora_te") and not key.endswith("alpha")]
    rest = [key for key in end if key.startswith("lora_unet") and not key.endswith("alpha")]
    assert text and all(torch.equal(middle[key], end[key]) for key in text)
    assert any(middle[key].any() for key in text if "lora_up" in key)
    assert all(not torch.equal(middle[key], end[key]) for key in rest)
    stopped, resumed = losses_with_a_stop(spec, 3, tmp_path / "resumed")
    assert stopped == whole
    assert all(torch.equal(end[key], value) for key, value in load_file(resumed.artifact).items())


@pytest.mark.parametrize("number, name, decay", [
    (2 * place + bool(decay), name, decay) for place, name in enumerate(NAMES) for decay in (0.0, 0.9)])
def test_resume_equals_never_stopping(number, name, decay, tiny_bases, make_spec, tmp_path):
    """Every optimizer with and without a running mean; the schedules take turns. Rank 64 gives 8-bit moments work."""
    schedule = SCHEDULES[number % len(SCHEDULES)]
    spec = make_spec(
        tiny_bases["sd1"], method=specs.LoraSpec(rank=64, alpha=64),
        optimizer=specs.OptimizerSpec(name=name, learning_rate=1.0 if name == "prodigy" else 1e-3),
        schedule=specs.ScheduleSpec(name=schedule, warmup_steps=0 if schedule == "one_cycle" else 1, cycles=2),
        training=specs.TrainingSpec(steps=4, batch_size=2, resolution=64, ema_decay=decay))
    whole, run = losses_of(spec)
    stopped, resumed = losses_with_a_stop(spec, 2, tmp_path / "resumed")
    assert stopped == whole and len(set(whole)) == 4
    one, other = load_file(run.artifact), load_file(resumed.artifact)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_every_schedule_is_resumed():
    assert {SCHEDULES[number % len(SCHEDULES)] for number in range(2 * len(NAMES))} == set(SCHEDULES)


def test_a_trial_that_fails_is_a_sentence(monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no kernel\nand more")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", fail)
    with pytest.raises(UserError, match=r"adamw_8bit does not work on this device \(cpu\).*: no kernel\. Choose adamw"):
        require_support(spec_of("adamw_8bit"), torch.device("cpu"))
    require_support(spec_of("adamw"), torch.device("cpu"))


def test_moments_are_8_bit(tiny_bases, make_spec):
    training = training_of(make_spec(tiny_bases["sd1"], method=specs.LoraSpec(rank=64, alpha=64),
                                     optimizer=specs.OptimizerSpec(name="adamw_8bit", learning_rate=1e-3)))
    training.execute()
    kinds = {values["state1"].dtype for values in training.optimizer.optimizer.state.values()}
    assert torch.uint8 in kinds


@pytest.mark.parametrize("parts, words", [
    ({"optimizer": specs.OptimizerSpec(name="prodigy", learning_rate=1e-4)}, "prodigy finds the learning rate itself"),
    ({"optimizer": specs.OptimizerSpec(name="prodigy", learning_rate=1.0),
      "method": specs.LoraSpec(text_encoder_learning_rate=1e-4)}, "text_encoder_learning_rate is a factor of it"),
    ({"method": specs.LoraSpec(text_encoder_learning_rate=0.5)}, "text_encoder_learning_rate 0.5 is too high for adamw"),
    ({"schedule": specs.ScheduleSpec(name="warmup_stable_decay", warmup_steps=3, decay_fraction=0.9)},
     "warm-up takes 3 steps and the decay 5, but the run has only 6"),
    ({"schedule": specs.ScheduleSpec(name="polynomial"), "optimizer": specs.OptimizerSpec(learning_rate=1e-8)},
     "use linear"),
])
def test_absurd_combinations_are_refused(parts, words, tiny_bases, make_spec):
    with pytest.raises(ValueError, match=words):
        make_spec(tiny_bases["sd1"], **parts)


@pytest.mark.parametrize("fields", [
    {"learning_rate": 0}, {"learning_rate": 11, "name": "prodigy"}, {"learning_rate": 0.2, "name": "lion"},
    {"weight_decay": 2}, {"epsilon": 0}, {"epsilon": 1}, {"betas": (0.9, 1)}, {"maximum_gradient_norm": -1},
    {"name": "best"},
])
def test_absurd_numbers_are_refused(fields):
    with pytest.raises(UserError, match=next(iter(fields)).replace("_", ".")):
        specs.checked(specs.OptimizerSpec, **fields)
