"""What a method hands to the optimizer."""
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate, under their names in checkpoints. After the fraction `stop_at` of the steps
    they stay as they are."""

    name: str
    learning_rate: float
    parameters: dict[str, nn.Parameter] = field(repr=False)
    stop_at: float = 1.0
