"""The loss on pictures that are not trained, and when to stop because it no longer falls.

Training losses jump with the noise that was drawn. Here noise and timesteps are a function of (seed, picture), so that one
number can be compared with the next.
"""
from dataclasses import asdict, dataclass
from typing import Callable, Mapping

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from . import randomness
from .data.batches import Batch, CachedPicture
from .data.split import number_of
from .families.protocol import Conditioning
from .objectives import Objective

LEVELS = 4
"""Noise levels at which every picture is tried, in one forward pass."""


@torch.no_grad()
def validation_loss(accelerator: Accelerator, model: nn.Module, objective: Objective, held_out: Mapping[str, CachedPicture],
                    conditioning: Callable[[str], Conditioning] | None, seed: int,
                    on_progress: Callable[[int, int], None] = lambda done, total: None) -> float:
    """Mean squared error over all pictures of `held_out` (by digest) and their noise levels, without weights or dropout.

    The processes share the pictures; all of them must call this and all get the same number, which does not depend on how
    many they are. `conditioning` is None when the text encoders train. Leaves the model in evaluation mode.
    """
    model = accelerator.unwrap_model(model).eval()
    losses = torch.zeros(len(held_out), device=accelerator.device)
    for place, (digest, picture) in enumerate(held_out.items()):
        if place % accelerator.num_processes == accelerator.process_index:
            batch, noised = noised_picture(objective, digest, picture, conditioning, seed, accelerator.device)
            with accelerator.autocast():
                prediction = model(noised.latents, noised.timesteps, batch)
            losses[place] = F.mse_loss(prediction.float(), noised.target.float())
            on_progress(place + 1, len(held_out))
    return float(accelerator.reduce(losses, reduction="sum").mean())


def noised_picture(objective: Objective, digest: str, picture: CachedPicture, conditioning, seed: int, device: torch.device):
    """(batch, noised): one picture at LEVELS noise levels, which lie evenly over the schedule, shifted together by a random
    part of their distance so that many pictures cover it all."""
    draw = randomness.generator(seed, randomness.VALIDATION, number_of(digest))
    shares = (torch.arange(LEVELS) + torch.rand((), generator=draw, dtype=torch.float64)) / LEVELS
    latents = picture.latents().expand(LEVELS, -1, -1, -1)
    noise = torch.randn(latents.shape, generator=draw)
    noised = objective.noise_at(latents.to(device), noise.to(latents).to(device), shares)
    captions = (picture.caption,) * LEVELS
    known = None if conditioning is None else {
        name: tensor.to(device).repeat_interleave(LEVELS, dim=0) for name, tensor in conditioning(picture.caption).items()}
    sizes = torch.tensor([picture.crop.sizes] * LEVELS, dtype=torch.float32, device=device)
    return Batch(latents.to(device), captions, known, sizes, ()), noised


@dataclass
class ValidationRecord:
    """What came out so far; a checkpoint keeps it. The loss before the first step is for comparison only: the best is
    always one of a trained model."""

    patience: int
    first: float | None = None
    last: float | None = None
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    """Validations since the best."""

    def add(self, step: int, loss: float) -> bool:
        """Take note of a loss. Returns whether it is the best so far."""
        self.first = loss if self.first is None else self.first
        self.last = loss
        if step == 0:
            return False
        better = self.best is None or loss < self.best
        if better:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1
        return better

    @property
    def exhausted(self) -> bool:
        """Whether patience is at its end."""
        return 0 < self.patience <= self.waited

    def state(self) -> dict:
        return asdict(self)

    def report(self) -> dict:
        return {"first": self.first, "best": self.best, "best_step": self.best_step, "last": self.last}
