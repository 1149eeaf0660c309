"""The training loop: the only one, for every model family and every method.

A step's batch and noise are functions of (seed, step), so the loop can stop after any step and go on later as if it never
had. Families, methods, files and progress live elsewhere; they reach the loop as `model`, `optimizer` and `after_step`.
"""
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from .. import randomness
from ..errors import Cancelled, UserError
from ..objectives.objective import Objective
from ..spec import RunSpec
from ..stopping import breakable
from .batches import Batch, Batches, MicroBatch
from .prefetch import prefetched


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did. `step` counts finished steps; `loss` is averaged over the whole batch;
    `gradient_norm` is taken before clipping; `learning_rates` are those of the optimizer's groups, by name."""

    step: int
    loss: float
    gradient_norm: float
    learning_rates: dict[str, float]


def train(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    spec: RunSpec,
    start: int,
    after_step: Callable[[StepResult], bool],
    regularizer: Callable[[], torch.Tensor | None] = lambda: None,
) -> int:
    """Train from step `start` to the end of the spec, until `after_step` returns False, or until a stop breaks a step off.
    Returns the steps finished.

    `model(latents, timesteps, batch)` predicts what the objective asks for. `model` and `optimizer` come from
    `accelerator.prepare`. What `regularizer()` returns is added to every step's
    loss. Raises UserError when the loss is no longer a number.
    """
    model.train()
    steps = range(start, spec.training.steps)
    with prefetched(batches, steps, accelerator.device) as reading:
        for step in steps:
            # Dropout inside the model asks the global generator.
            torch.manual_seed(randomness.derive(spec.training.seed, randomness.DROPOUT, step, accelerator.process_index))
            try:
                with breakable(accelerator.num_processes == 1):  # several would wait for each other
                    loss = accumulate_gradients(accelerator, model, batches.plan(step), reading, objective, regularizer)
            except Cancelled:  # nothing has changed yet: as if this step had not begun
                return step
            if not torch.isfinite(loss):
                raise UserError(f"The loss is not a number any more at step {step + 1}. Lower the learning rate, or choose "
                                "the precision bf16 or fp32; then queue again.")
            gradient_norm = clip(accelerator, optimizer, step, spec.optimizer.maximum_gradient_norm)
            learning_rates = {group["name"]: float(rate)
                              for group, rate in zip(optimizer.param_groups, schedule.get_last_lr())}
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            result = StepResult(step + 1, float(loss), float(gradient_norm), learning_rates)
            if not agreed(accelerator, after_step(result)):
                return result.step
            model.train()  # a preview may have switched it
    return spec.training.steps


def accumulate_gradients(accelerator: Accelerator, model: nn.Module, planned: Sequence[MicroBatch], reading: Iterator[Batch],
                         objective: Objective, regularizer: Callable[[], torch.Tensor | None]) -> torch.Tensor:
    """Backward passes of all micro-batches of a step, the next ones of `reading`; returns their weighted loss, averaged over
    all processes."""
    total = torch.zeros((), device=accelerator.device)
    for micro in planned:
        last = micro is planned[-1]
        with nullcontext() if last else accelerator.no_sync(model):
            batch = next(reading).to(accelerator.device)
            noised = objective.noise(batch.latents, batch.generators)
            prediction = model(noised.latents, noised.timesteps, batch)
            loss = micro.weight * objective.loss(prediction, noised, batch.masks, batch.weights)
            extra = regularizer() if last else None
            if extra is not None:
                loss = loss + extra
            accelerator.backward(loss)
        total += loss.detach()
    return torch.as_tensor(accelerator.reduce(total, reduction="mean"))


def clip(accelerator: Accelerator, optimizer: torch.optim.Optimizer, step: int, maximum: float) -> torch.Tensor:
    """Scale gradients down to the norm `maximum` (0: leave them); returns the norm they had.

    Groups that have stopped do not count, and lose their gradients: then no momentum and no decay moves them either.
    """
    training, stopped = [], []
    for group in optimizer.param_groups:
        (training if step < group["stop_step"] else stopped).extend(group["params"])
    norm = accelerator.clip_grad_norm_(training, maximum or float("inf"))
    for parameter in stopped:
        parameter.grad = None
    return torch.as_tensor(norm)


def agreed(accelerator: Accelerator, go_on: bool) -> bool:
    """Only the main process hears of a cancel; all must stop at the same step."""
    if accelerator.num_processes == 1:
        return go_on
    stops = accelerator.reduce(torch.tensor(0.0 if go_on else 1.0, device=accelerator.device), reduction="sum")
    return bool(stops == 0)
