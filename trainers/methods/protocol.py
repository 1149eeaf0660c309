"""What a training method offers: which parameters become trainable, and the file they end in."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import nn

from ..families.protocol import Family, TextEncoders


@dataclass
class Parts:
    """The modules of a base model that are in memory during the loop. `text` is None when its outputs are cached."""

    family: Family
    denoiser: nn.Module
    text: TextEncoders | None


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate, under their names in checkpoints."""

    name: str
    learning_rate: float
    parameters: dict[str, nn.Parameter] = field(repr=False)


class Method(Protocol):
    kind: str
    requires: frozenset[str]
    """Capabilities that the family must have."""

    def trains_text(self) -> bool:
        """Whether captions must be encoded in every step instead of once."""

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        """Make the method's parameters, and only those, trainable. Adapters start from numbers drawn from `seed`."""

    def after_step(self, step: int): ...

    def save(self, parts: Parts, path: Path, metadata: dict[str, str]) -> dict:
        """Write the file that other programs load; returns facts for the report (keys, bytes, strength of effect)."""
