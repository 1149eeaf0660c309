"""Every schedule at every step, against torch, transformers and closed forms."""
from math import cos, pi
from typing import get_args

import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.optimization.optimizers import make_optimizer
from finetune.trainers.optimization.parameter_group import ParameterGroup
from finetune.trainers.optimization.schedules import make_schedule
from transformers.optimization import get_wsd_schedule

STEPS, WARMUP, RATE = 40, 6, 2e-3
NAMES = get_args(specs.ScheduleSpec.model_fields["name"].annotation)


def rates_of(spec, steps=STEPS, rates=(RATE, RATE / 8), stops=(1.0, 1.0)):
    """The rates of two groups before each step, by the schedule itself."""
    groups = [ParameterGroup(name, rate, {"value": torch.nn.Parameter(torch.ones(2))}, stop)
              for name, rate, stop in zip("ab", rates, stops)]
    optimizer = make_optimizer(specs.OptimizerSpec(learning_rate=rates[0]), groups, steps)
    schedule = make_schedule(spec, optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        schedule.step()
    return seen


def fraction(step):
    """0 after the warm-up, 1 at the end."""
    return (step - WARMUP) / (STEPS - WARMUP)


CLOSED = {
    "constant": lambda step: 1,
    "linear": lambda step: 1 - fraction(step),
    "cosine": lambda step: (1 + cos(pi * fraction(step))) / 2,
    "cosine_with_restarts": lambda step: (1 + cos(pi * (3 * fraction(step) % 1))) / 2,
    "polynomial": lambda step: (1 - fraction(step)) * (1 - 1e-7 / RATE) + 1e-7 / RATE,
    "warmup_stable_decay": lambda step: min(1, (STEPS - step) / 10),
}


def test_every_schedule_is_compared():
    assert {*CLOSED, "one_cycle"} == set(NAMES)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    spec = specs.ScheduleSpec(name=name, warmup_steps=WARMUP, cycles=3, decay_fraction=0.25)
    expected = [step / WARMUP if step < WARMUP else CLOSED[name](step) for step in range(STEPS)]
    seen = rates_of(spec)
    assert [first for first, _ in seen] == pytest.approx([RATE * factor for factor in expected], abs=1e-15)
    assert [second for _, second in seen] == pytest.approx([RATE / 8 * factor for factor in expected], abs=1e-15)
    assert max(first for first, _ in seen) == RATE


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 40, 333])
def test_one_cycle_is_torch_s(steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps, cycle_momentum=False)
    expected = []
    for step in range(steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            theirs.step()
    seen = rates_of(specs.ScheduleSpec(name="one_cycle"), steps)
    assert [first for first, _ in seen] == pytest.approx(expected, rel=1e-12)


def test_warmup_stable_decay_is_transformers_s():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE)
    theirs = get_wsd_schedule(optimizer, num_warmup_steps=WARMUP, num_stable_steps=STEPS - WARMUP - 10, num_decay_steps=10,
                              decay_type="linear")
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    spec = specs.ScheduleSpec(name="warmup_stable_decay", warmup_steps=WARMUP, decay_fraction=0.25)
    assert [first for first, _ in rates_of(spec)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_stops_after_its_share(name):
    spec = specs.ScheduleSpec(name=name)
    whole, stopped = rates_of(spec), rates_of(spec, stops=(1.0, 0.3))
    assert [first for first, _ in whole] == [first for first, _ in stopped]
    assert [second for _, second in stopped[:12]] == [second for _, second in whole[:12]]
    assert {second for _, second in stopped[12:]} == {0.0}


@pytest.mark.parametrize("stop, steps, last", [(0.7, 10, 7), (0.5, 5, 2), (0.01, 3, 1), (1.0, 4, 4)])
def test_where_a_group_stops(stop, steps, last):
    """At the nearest step, and never before the first."""
    rates = rates_of(specs.ScheduleSpec(), steps, stops=(1.0, stop))
    assert sum(second > 0 for _, second in rates) == last


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_goes_on_where_it_was(name):
    """From its state dict, as a checkpoint keeps it."""
    spec = specs.ScheduleSpec(name=name, cycles=2)

    def build():
        group = ParameterGroup("a", RATE, {"value": torch.nn.Parameter(torch.ones(2))}, 0.8)
        optimizer = make_optimizer(specs.OptimizerSpec(learning_rate=RATE), [group], STEPS)
        return optimizer, make_schedule(spec, optimizer, STEPS)

    optimizer, schedule = build()
    for _ in range(15):
        optimizer.step()
        schedule.step()
    other, resumed = build()
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(STEPS - 15):
        assert other.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        for each in (optimizer, schedule, other, resumed):
            each.step()


@pytest.mark.parametrize("fields, words", [
    ({"name": "one_cycle", "warmup_steps": 5}, "a warm-up of its own"), ({"decay_fraction": 1.5}, "decay_fraction"),
    ({"cycles": 0}, "cycles"), ({"warmup_steps": -1}, "warmup_steps"), ({"name": "wave"}, "name is 'wave'"),
])
def test_absurd_numbers_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        specs.checked(specs.ScheduleSpec, **fields)
