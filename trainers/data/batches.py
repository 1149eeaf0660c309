"""Which pictures make up which batch, as a function of (seed, batch number), and reading them from the caches."""
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Sequence

import torch
from torch import Tensor

from .. import randomness
from ..families.protocol import Conditioning
from .buckets import Crop


@dataclass(frozen=True)
class Batch:
    """`latents` [batch, channels, height, width]; `sizes` [batch, 6]; `generators` one per sample.

    `conditioning` is None when the text encoders train: then `captions` are encoded in every step.
    """

    latents: Tensor
    captions: tuple[str, ...]
    conditioning: Conditioning | None
    sizes: Tensor
    generators: tuple[torch.Generator, ...]


class BatchOrder:
    """Endless batches of pictures that share a bucket. Every picture comes `repeats` times an epoch, in an order drawn
    from (seed, epoch); a bucket's last batch is filled up from its beginning."""

    def __init__(self, buckets: Sequence[tuple[int, int]], repeats: Sequence[int], batch_size: int, seed: int):
        """`buckets` and `repeats` have one entry per picture."""
        self.batch_size, self.seed = batch_size, seed
        self.groups: dict[tuple[int, int], list[int]] = {}
        for index, bucket in enumerate(buckets):
            self.groups.setdefault(bucket, []).extend([index] * repeats[index])
        self.batches_per_epoch = sum(-(-len(group) // batch_size) for group in self.groups.values())
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> list[list[int]]:
        draw = randomness.generator(self.seed, randomness.ORDER, epoch)
        batches = []
        for bucket in sorted(self.groups):
            group = self.groups[bucket]
            shuffled = [group[position] for position in torch.randperm(len(group), generator=draw).tolist()]
            for start in range(0, len(group), self.batch_size):
                chosen = shuffled[start:start + self.batch_size]
                while len(chosen) < self.batch_size:
                    chosen = chosen + shuffled[:self.batch_size - len(chosen)]
                batches.append(chosen)
        return [batches[position] for position in torch.randperm(len(batches), generator=draw).tolist()]

    def __getitem__(self, number: int) -> list[int]:
        """Indices of the pictures of batch `number`, counted from the start of the run."""
        epoch, position = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[position]


@dataclass(frozen=True)
class CachedPicture:
    caption: str
    crop: Crop
    latents: Callable[[], Tensor]


class Batches:
    """Batches for the loop: `batches(step, micro)` gives this process's share of one micro-batch.

    Sample i of a step has its own generators, numbered over all processes and accumulation steps. The batch size counts
    all processes, so the same spec trains alike in one process or several.
    """

    def __init__(self, pictures: Sequence[CachedPicture], order: BatchOrder, accumulation: int, seed: int,
                 caption_dropout: float, conditioning: Callable[[Sequence[str]], Conditioning] | None,
                 device: torch.device, rank: int = 0, processes: int = 1):
        self.pictures, self.order, self.accumulation, self.seed = pictures, order, accumulation, seed
        self.caption_dropout, self.conditioning, self.device = caption_dropout, conditioning, device
        share = order.batch_size // processes
        self.share = range(rank * share, (rank + 1) * share)

    def __call__(self, step: int, micro: int) -> Batch:
        batch = self.order[step * self.accumulation + micro]
        chosen = [self.pictures[batch[place]] for place in self.share]
        samples = [micro * self.order.batch_size + place for place in self.share]
        captions = tuple(
            "" if self._dropped(step, sample) else picture.caption for sample, picture in zip(samples, chosen)
        )
        return Batch(
            latents=torch.stack([picture.latents() for picture in chosen]).to(self.device),
            captions=captions,
            conditioning=self._condition(captions),
            sizes=torch.tensor([picture.crop.sizes for picture in chosen], dtype=torch.float32, device=self.device),
            generators=tuple(
                randomness.generator(self.seed, randomness.NOISE, step, sample) for sample in samples
            ),
        )

    def _dropped(self, step: int, sample: int) -> bool:
        if not self.caption_dropout:
            return False
        draw = randomness.generator(self.seed, randomness.CAPTIONS, step, sample)
        return torch.rand((), generator=draw).item() < self.caption_dropout

    def _condition(self, captions: Sequence[str]) -> Conditioning | None:
        if self.conditioning is None:
            return None
        return {name: tensor.to(self.device) for name, tensor in self.conditioning(captions).items()}
