"""What a denoiser is told beside the noised latents: encoded captions, and whatever else a family wants to know."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

MASK = "mask."
"""Prefix of masks in the cache."""


@dataclass(frozen=True)
class Conditioning:
    """Named tensors of a batch. Each has the batch first; those that are sequences have tokens on the second axis.

    `masks` are bool [batch, tokens], True where a token counts. A sequence without a mask counts as a whole, which is how
    families tell "no padding" from "padding that the denoiser must see".
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __or__(self, other: "Conditioning") -> "Conditioning":
        """Both together, of the same batch."""
        return Conditioning({**self.tensors, **other.tensors}, {**self.masks, **other.masks})

    def lengths(self, name: str) -> tuple[int, ...]:
        """How many tokens of a sequence count, for each sample."""
        if name in self.masks:
            return tuple(self.masks[name].sum(dim=1).tolist())
        batch, tokens = self.tensors[name].shape[:2]
        return (tokens,) * batch

    def to(self, device: torch.device, non_blocking: bool = False) -> "Conditioning":
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> "Conditioning":
        """In memory from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def repeated(self, count: int) -> "Conditioning":
        """Each sample `count` times, one after the other."""
        return self._each(lambda tensor: tensor.repeat_interleave(count, 0))

    def of(self, samples: Tensor) -> "Conditioning":
        """Some samples, by their numbers, int64."""
        return self._each(lambda tensor: tensor[samples])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        return Conditioning({name: change(tensor) for name, tensor in self.tensors.items()},
                            {name: change(mask) for name, mask in self.masks.items()})

    @staticmethod
    def collated(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Batches as one. Sequences of different lengths are padded behind with zeros to the longest, and their masks tell;
        where all are equally long and none has a mask, there is none."""
        tensors, masks = {}, {}
        for name in parts[0].tensors:
            each = [part[name] for part in parts]
            if len({tensor.shape[1:] for tensor in each}) > 1 or any(name in part.masks for part in parts):
                longest = max(tensor.shape[1] for tensor in each)
                masks[name] = torch.cat([_lengthened(part.mask(name), longest) for part in parts])
                each = [_lengthened(tensor, longest) for tensor in each]
            tensors[name] = torch.cat(each)
        return Conditioning(tensors, masks)

    def mask(self, name: str) -> Tensor:
        """Of a sequence, where it has none too."""
        tensor = self.tensors[name]
        return self.masks.get(name, torch.ones(tensor.shape[:2], dtype=torch.bool, device=tensor.device))

    @staticmethod
    def guidance(strength: float, count: int) -> "Conditioning":
        """What models with distilled guidance are told: "guidance" float [count]."""
        return Conditioning({"guidance": torch.full((count,), strength)})

    # ---- what several text encoders say, before it is joined ---------------------------------------------------------

    @staticmethod
    def labeled(said: Mapping[str, "Conditioning"]) -> "Conditioning":
        """What text encoders say as one, each name behind that of its encoder: "te3/hidden"."""
        return Conditioning(
            {f"{encoder}/{name}": tensor for encoder, each in said.items() for name, tensor in each.tensors.items()},
            {f"{encoder}/{name}": mask for encoder, each in said.items() for name, mask in each.masks.items()})

    def said_by(self, encoder: str) -> "Conditioning":
        """The part of `labeled` that is of this encoder."""
        start = f"{encoder}/"
        return Conditioning(*({name.removeprefix(start): each for name, each in part.items() if name.startswith(start)}
                              for part in (self.tensors, self.masks)))

    def unlabeled(self) -> "Conditioning":
        """The rest, of no encoder."""
        return Conditioning(*({name: each for name, each in part.items() if "/" not in name}
                              for part in (self.tensors, self.masks)))

    # ---- as caches keep it -----------------------------------------------------------------------------------------

    def entry(self) -> dict[str, Tensor]:
        """A batch of one as plain tensors without the batch's axis."""
        masks = {MASK + name: mask[0] for name, mask in self.masks.items()}
        return {**{name: tensor[0] for name, tensor in self.tensors.items()}, **masks}

    @staticmethod
    def of_entry(entry: Mapping[str, Tensor]) -> "Conditioning":
        """The batch of one that `entry` was made of."""
        return Conditioning({name: tensor[None] for name, tensor in entry.items() if not name.startswith(MASK)},
                            {name.removeprefix(MASK): mask[None] for name, mask in entry.items() if name.startswith(MASK)})


def _lengthened(tensor: Tensor, tokens: int) -> Tensor:
    """[batch, tokens, …] with zeros (False) behind."""
    return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, tokens - tensor.shape[1]))


def by_length(predict: Callable[[Conditioning, Tensor], Tensor], conditioning: Conditioning, sequence: str,
              multiple: int = 1) -> Tensor:
    """A prediction for captions of different lengths: each length is a batch of its own, because the denoiser has no mask
    for its text. `predict` takes the conditioning of some samples and their numbers, int64 [samples].

    A denoiser that fills captions up to a `multiple` of tokens by itself gets those together that it makes equally long; its
    `conditioning.lengths` says how many tokens of each are words.
    """
    device = conditioning[sequence].device
    filled = [-(-length // multiple) for length in conditioning.lengths(sequence)]
    if len(set(filled)) == 1:
        return predict(_cut(conditioning, sequence), torch.arange(len(filled), device=device))
    order, found = [], []
    for each in sorted(set(filled)):
        chosen = torch.tensor([number for number, own in enumerate(filled) if own == each], device=device)
        found.append(predict(_cut(conditioning.of(chosen), sequence), chosen))
        order.append(chosen)
    return torch.cat(found)[torch.cat(order).argsort()]


def _cut(conditioning: Conditioning, sequence: str) -> Conditioning:
    """As long as its longest sequence; without a mask where all are."""
    lengths = conditioning.lengths(sequence)
    longest = max(lengths)
    masks = {name: mask for name, mask in conditioning.masks.items() if name != sequence}
    if len(set(lengths)) > 1:
        masks[sequence] = conditioning.masks[sequence][:, :longest]
    return Conditioning({**conditioning.tensors, sequence: conditioning[sequence][:, :longest]}, masks)
