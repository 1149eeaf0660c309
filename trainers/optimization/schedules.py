"""Learning-rate schedules by name: factors of every group's own rate, as functions of the step."""
from collections.abc import Callable
from functools import partial
from math import cos, pi

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..spec import ScheduleSpec


def make_schedule(spec: ScheduleSpec, optimizer: Optimizer, steps: int) -> LambdaLR:
    """The schedule of all groups; the rate of a group is 0 from its "stop_step" on."""
    factor = make_factor(spec, steps, optimizer.defaults["lr"])
    return LambdaLR(optimizer, [partial(_until, group["stop_step"], factor) for group in optimizer.param_groups])


def make_factor(spec: ScheduleSpec, steps: int, learning_rate: float) -> Callable[[int], float]:
    """Step 0 … `steps` - 1 → factor of the learning rate, at most 1."""
    if spec.name == "one_cycle":
        return partial(one_cycle, steps=steps)
    if spec.name == "warmup_stable_decay":
        return partial(warmup_stable_decay, steps=steps, warmup=spec.warmup_steps, decay=decay_steps(spec, steps))
    from diffusers.optimization import get_scheduler

    name = "constant_with_warmup" if spec.name == "constant" else spec.name
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    return get_scheduler(name, stand_in, num_warmup_steps=spec.warmup_steps, num_training_steps=steps,
                         num_cycles=spec.cycles).lr_lambdas[0]


def decay_steps(spec: ScheduleSpec, steps: int) -> int:
    return round(spec.decay_fraction * steps)


def warmup_stable_decay(step: int, steps: int, warmup: int, decay: int) -> float:
    """A rise, a plateau, and a straight fall that would reach 0 at `steps` (Hu et al. 2024, arXiv:2404.06395, section
    4; the straight fall as in Hägele et al. 2024, arXiv:2405.18392)."""
    if step < warmup:
        return step / warmup
    return min(1.0, max(0, steps - step) / decay) if decay else 1.0


def one_cycle(step: int, steps: int, rise: float = 0.3, start: float = 1 / 25, end: float = 1 / 25e4) -> float:
    """Half a cosine up from `start` in the fraction `rise` of the steps, and one down to `end` (Smith & Topin 2017,
    arXiv:1708.07120), in the form and with the numbers of torch's OneCycleLR."""
    peak, last = rise * steps - 1, steps - 1
    if step <= peak:
        return _half_cosine(start, 1.0, step / peak)
    return _half_cosine(1.0, end, (min(step, last) - peak) / (last - peak))


def _half_cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) / 2 * (cos(pi * fraction) + 1)


def _until(stop_step: int, factor: Callable[[int], float], step: int) -> float:
    return factor(step) if step < stop_step else 0.0
