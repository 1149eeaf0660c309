"""What a training method offers: which parameters become trainable, and the files they end in."""
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from ..families.protocol import Family, TextEncoders
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved
from ..spec import BaseModelSpec, RunSpec


@dataclass
class Parts:
    """The modules of a base model that are in memory during the loop. `text` holds nothing when its outputs are cached;
    `base` is for methods that save what they did not train too."""

    family: Family
    denoiser: nn.Module
    text: TextEncoders
    base: BaseModelSpec


class Method(Protocol):
    kind: str
    requires: frozenset[str]
    """Capabilities that the family must have."""

    def trains_text(self) -> bool:
        """Whether captions must be encoded in every step instead of once."""
        ...

    def trains_base(self) -> bool:
        """Whether weights of the base itself are trained; they are then loaded in float32."""
        ...

    def check(self, family: Family, spec: RunSpec) -> list[str]:
        """Before anything heavy: raise UserError for what cannot work; return notes for what people should know."""
        ...

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        """Make the method's parameters, and only those, trainable. Adapters start from numbers drawn from `seed`."""
        ...

    def regularizer(self) -> Tensor | None:
        """A scalar to add to the loss of every step, or None."""
        ...

    def after_step(self, step: int): ...

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> Saved:
        """Write the files that other programs load."""
        ...


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
