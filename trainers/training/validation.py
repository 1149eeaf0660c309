"""The loss on images that are not trained, and when to stop because it no longer falls.

Training losses jump with the noise of their samples. Here noise and timesteps are a function of (seed, image), so that one
number can be compared with the next.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .. import randomness
from ..data.images.buckets import Crop
from ..data.split import number_of
from ..errors import Cancelled
from ..families.conditioning import Conditioning
from ..objectives.losses import weighted_loss
from ..objectives.objective import Noised, Objective
from ..reports import ValidationSummary
from ..stopping import breakable
from .batches import Batch, CachedImage

LEVELS = 4
"""Noise levels at which every image is tried, in one forward pass."""


@torch.no_grad()
def validation_loss(accelerator: Accelerator, model: nn.Module, objective: Objective, held_out: Mapping[str, CachedImage],
                    conditioning: Callable[[Sequence[str], Sequence[Crop]], Conditioning], seed: int,
                    on_progress: Callable[[int, int], None] = lambda done, total: None) -> float | None:
    """Mean squared error over all images of `held_out` (by digest) and their noise levels, without weights or dropout,
    with plain images and captions; in a masked run with the masks of the images. None when a stop broke it off.

    The processes share the images; all of them must call this and all get the same number, which does not depend on how
    many they are. `conditioning(captions, crops)` is what is known before. Leaves the model in evaluation mode.
    """
    model, losses = accelerator.unwrap_model(model).eval(), torch.zeros(len(held_out), device=accelerator.device)
    broken_off = torch.zeros((), device=accelerator.device)
    try:
        with breakable():
            for place, (digest, image) in enumerate(held_out.items()):
                if place % accelerator.num_processes == accelerator.process_index:
                    generator = randomness.generator(seed, randomness.VALIDATION, number_of(digest))
                    batch = batch_of(image, conditioning).to(accelerator.device)
                    losses[place] = loss_of(accelerator, model, batch, objective, generator)
                    on_progress(place + 1, len(held_out))
    except Cancelled:
        broken_off += 1
    losses, broken_off = (accelerator.reduce(each, reduction="sum") for each in (losses, broken_off))
    return float(losses.mean()) if not broken_off else None


def loss_of(accelerator: Accelerator, model: nn.Module, batch: Batch, objective: Objective,
            generator: torch.Generator) -> Tensor:
    """The loss of one image at all its noise levels."""
    noised = evenly_noised(objective, batch.latents, generator)
    with accelerator.autocast():
        prediction = model(noised.latents, noised.timesteps, batch)
    return weighted_loss(prediction, noised.target, torch.ones(LEVELS, device=accelerator.device), "l2", masks=batch.masks,
                         unmasked_weight=objective.settings.unmasked_weight)


def batch_of(image: CachedImage, conditioning: Callable[[Sequence[str], Sequence[Crop]], Conditioning]) -> Batch:
    """One image LEVELS times."""
    [view] = image.views  # images that are held out have no variants
    latents = view.latents().expand(LEVELS, -1, -1, -1)
    masks = view.mask().expand(LEVELS, -1, -1, -1) if view.mask else None
    known = conditioning([image.caption], [view.crop]).repeated(LEVELS)
    return Batch(latents, (image.caption,) * LEVELS, known, generators=(), masks=masks)


def evenly_noised(objective: Objective, latents: Tensor, generator: torch.Generator) -> Noised:
    """Without the offsets of the objective's settings. The noise levels lie evenly over the schedule, shifted together by a
    random part of their distance, so that many images cover it all."""
    fractions = (torch.arange(LEVELS) + torch.rand((), generator=generator, dtype=torch.float64)) / LEVELS
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    return objective.mix(latents, noise, objective.levels(fractions))


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

    def summary(self) -> ValidationSummary:
        return ValidationSummary(first=self.first, best=self.best, best_step=self.best_step, last=self.last)
