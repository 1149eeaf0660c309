"""Learning-rate schedules by name: diffusers' `get_scheduler`, which scales every group's own rate."""
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .spec import ScheduleSpec


def make_schedule(spec: ScheduleSpec, optimizer: Optimizer, steps: int) -> LambdaLR:
    name = "constant_with_warmup" if spec.name == "constant" else spec.name
    return get_scheduler(
        name, optimizer, num_warmup_steps=spec.warmup_steps, num_training_steps=steps, num_cycles=spec.cycles
    )
