"""What a training method offers: which parameters become trainable, and the files they end in."""
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from ..errors import UserError
from ..families.protocol import Family, TextEncoders
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved
from ..spec import BaseModelSpec, RunSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Parts:
    """The modules of a base model that are in memory during the loop. `text` holds the encoders that train; `base` is for
    methods that save what they did not train too."""

    family: Family
    denoiser: nn.Module
    text: TextEncoders
    base: BaseModelSpec

    def encoders(self, names: Collection[str]) -> "dict[str, PreTrainedModel]":
        """The text encoders of these names, in the family's order."""
        return {name: self.text.encoders[name] for name in self.family.encoder_names(self.base) if name in names}


class Method(Protocol):
    kind: str
    requires: frozenset[str]
    """Capabilities that the family must have."""

    def trained_encoders(self, family: Family, base: BaseModelSpec) -> frozenset[str]:
        """Text encoders that must encode captions in every step instead of once, by their names."""
        ...

    def hidden_words(self) -> Collection[str]:
        """Words of captions that the other text encoders do not see, known after `check`."""
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


def chosen_encoders(family: Family, base: BaseModelSpec, large: bool) -> frozenset[str]:
    """The text encoders that train where text encoders do; T5 and other large ones if `large`."""
    return frozenset(name for name in family.encoder_names(base) if large or name not in family.large_encoders)


def large_encoder_notes(family: Family, base: BaseModelSpec, wanted: bool, trains_text: bool = True,
                        widget: str = "train_t5") -> list[str]:
    """Where T5 shall learn and there is none. UserError where it shall not, and there is nothing else."""
    names = family.encoder_names(base)
    if not trains_text:
        return [f"{widget} has no effect, because text_encoder_learning_rate is 0"] if wanted else []
    if not wanted and not chosen_encoders(family, base, wanted):
        raise UserError(f"{base.name!r} has no text encoder but T5, which is left as it is. Switch {widget} on, or give the "
                        "base its CLIP text encoders.")
    if wanted and not set(names) & set(family.large_encoders):
        return [f"{widget} is not read: {base.name} has no T5 text encoder"]
    return []


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
