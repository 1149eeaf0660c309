"""Which images make up which batch, as a function of (seed, batch number), and reading them from the caches."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, floor
from typing import Any

import torch
from torch import Tensor

from .. import randomness
from ..data.captions.variation import vary_caption
from ..data.images.buckets import Crop
from ..families.conditioning import Conditioning
from ..spec import CaptionVariationSpec


@dataclass(frozen=True)
class Batch:
    """`latents` [batch, channels, height, width]; `generators` one per sample; `masks` [batch, 1, height, width] in 0…1, or
    None; `weights` [batch], how much each sample's loss counts, or None where all count 1.

    `conditioning` lacks that of the captions when the text encoders train: then `captions` are encoded in every step.
    """

    latents: Tensor
    captions: tuple[str, ...]
    conditioning: Conditioning
    generators: tuple[torch.Generator, ...]
    masks: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """From pinned memory a GPU copies while it computes. Elsewhere (MPS) the tensors would have to outlive the copy."""
        return self._each(lambda each: each.to(device, non_blocking=device.type == "cuda"))

    def pinned(self) -> "Batch":
        return self._each(lambda each: each.pinned() if isinstance(each, Conditioning) else each.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "Batch":
        fields = {name: getattr(self, name) for name in ("latents", "conditioning", "masks", "weights")}
        return replace(self, **{name: change(each) for name, each in fields.items() if each is not None})


class BatchOrder:
    """Endless batches of images that share a bucket. Every image comes `repeats` times an epoch, in an order that (seed,
    stream, epoch) decide; a bucket's last batch is filled up from its beginning."""

    def __init__(self, buckets: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int, seed: int,
                 stream: int = randomness.ORDER):
        """`buckets` and `repeats` have one entry per image."""
        self.batch_size, self.seed, self.stream = batch_size, seed, stream
        self.groups: dict[tuple[int, int], list[int]] = {}
        for index, bucket in enumerate(buckets):
            self.groups.setdefault(bucket, []).extend([index] * repeats[index])
        self.batches_per_epoch = sum(-(-len(group) // batch_size) for group in self.groups.values())
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> list[list[int]]:
        generator = randomness.generator(self.seed, self.stream, epoch)
        batches = []
        for bucket in sorted(self.groups):
            group = self.groups[bucket]
            shuffled = [group[position] for position in torch.randperm(len(group), generator=generator).tolist()]
            for start in range(0, len(group), self.batch_size):
                chosen = shuffled[start:start + self.batch_size]
                while len(chosen) < self.batch_size:
                    chosen = chosen + shuffled[:self.batch_size - len(chosen)]
                batches.append(chosen)
        return [batches[position] for position in torch.randperm(len(batches), generator=generator).tolist()]

    def __getitem__(self, number: int) -> list[int]:
        """Indices of the images of batch `number`, counted from the start of the run."""
        epoch, position = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[position]


@dataclass(frozen=True)
class CachedView:
    """An image as it comes out of the caches in one of its variants."""

    crop: Crop
    latents: Callable[[], Tensor]
    mask: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class CachedImage:
    """`views` are its variants, of which one is chosen each time; they share a bucket."""

    caption: str
    views: Sequence[CachedView]
    variation: CaptionVariationSpec = CaptionVariationSpec()
    weight: float = 1.0


@dataclass(frozen=True)
class Source:
    """Images that are trained together, and the order of their batches."""

    images: Sequence[CachedImage]
    order: BatchOrder


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of a step: batch `number` of `source`; its loss counts `weight`. Its samples are
    numbered from `first_sample` on, over all processes and passes of the step."""

    source: Source
    number: int
    step: int
    first_sample: int
    weight: float


class Batches:
    """Batches for the loop: `plan(step)` says which, `load(micro)` reads this process's part of one.

    The batch size counts all processes, so the same spec trains alike in one process or several. Class images come in
    passes of their own, because they need not have the shape of the subject's.
    """

    def __init__(self, subject: Source, accumulation: int, seed: int, caption_dropout: float,
                 conditioning: Callable[[Sequence[str], Sequence[Crop]], Conditioning], rank: int = 0, processes: int = 1,
                 prior: Source | None = None, prior_weight: float = 1.0, prior_rate: float = 1.0):
        """`conditioning(captions, crops)` is what is known of it before the step. `prior_rate`: batches of `prior` for every
        batch of `subject`, at most 1."""
        self.subject, self.prior, self.prior_weight, self.prior_rate = subject, prior, prior_weight, prior_rate
        self.accumulation, self.seed, self.caption_dropout = accumulation, seed, caption_dropout
        self.conditioning, self.rank, self.processes = conditioning, rank, processes

    def plan(self, step: int) -> list[MicroBatch]:
        size, planned = self.subject.order.batch_size, []
        for micro in range(self.accumulation):
            number = step * self.accumulation + micro
            planned.append(MicroBatch(self.subject, number, step, micro * size, 1 / self.accumulation))
            if self.prior:
                due = floor((number + 1) * self.prior_rate)
                if due > floor(number * self.prior_rate):
                    first = self.accumulation * size + micro * self.prior.order.batch_size
                    planned.append(MicroBatch(self.prior, due - 1, step, first, self.prior_weight / self.accumulation))
        return planned

    def load(self, micro: MicroBatch) -> Batch:
        """On the CPU. Raises UserError when what was cached is gone."""
        order, batch = micro.source.order, micro.source.order[micro.number]
        part = order.batch_size // self.processes
        places = range(self.rank * part, (self.rank + 1) * part)
        chosen = [micro.source.images[batch[place]] for place in places]
        samples = [micro.first_sample + place for place in places]
        captions = tuple(self._caption(image, micro.step, sample) for image, sample in zip(chosen, samples))
        views = [self._view(image, micro.step, sample) for image, sample in zip(chosen, samples)]
        masks = [view.mask() for view in views if view.mask]
        weights = [image.weight for image in chosen]
        return Batch(
            latents=torch.stack([view.latents() for view in views]),
            captions=captions,
            conditioning=self.conditioning(captions, [view.crop for view in views]),
            generators=tuple(
                randomness.generator(self.seed, randomness.NOISE, micro.step, sample) for sample in samples
            ),
            masks=torch.stack(masks) if masks else None,
            weights=torch.tensor(weights) if any(weight != 1 for weight in weights) else None,
        )

    def _caption(self, image: CachedImage, step: int, sample: int) -> str:
        """A function of (seed, step, sample) alone, so that a resumed run has the captions of one that never stopped."""
        if self._dropped(step, sample):
            return ""
        return vary_caption(image.caption, image.variation,
                            randomness.generator(self.seed, randomness.VARIATION, step, sample))

    def _view(self, image: CachedImage, step: int, sample: int) -> CachedView:
        generator = randomness.generator(self.seed, randomness.VARIANT, step, sample)
        return image.views[int(torch.randint(len(image.views), (), generator=generator))]

    def _dropped(self, step: int, sample: int) -> bool:
        if not self.caption_dropout:
            return False
        generator = randomness.generator(self.seed, randomness.CAPTIONS, step, sample)
        return torch.rand((), generator=generator).item() < self.caption_dropout


def prior_batches(batch_size: int, ratio: float, processes: int) -> tuple[int, float]:
    """(size of a batch of class images, batches of them for every batch of the subject): `ratio` class images for
    every image of the subject, in batches that the processes can share evenly."""
    wanted = batch_size * ratio
    size = ceil(max(1, round(wanted)) / processes) * processes
    return size, min(1.0, wanted / size)
