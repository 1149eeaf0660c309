"""Pivotal tuning: a new word and a LoRA trained together (Roich et al. 2021, arXiv:2106.05744; for diffusion models
cloneofsimo's `lora_diffusion` and diffusers' advanced DreamBooth examples)."""
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..families.protocol import Family
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved
from ..spec import BaseModelSpec, PivotalSpec, RunSpec
from .lora import Lora
from .protocol import Parts
from .textual_inversion import TextualInversion


class Pivotal:
    kind = "pivotal"

    def __init__(self, spec: PivotalSpec, learning_rate: float):
        self.lora = Lora(spec.lora, learning_rate)
        self.inversion = TextualInversion(spec.embedding, spec.embedding_learning_rate)
        self.requires = self.lora.requires | self.inversion.requires

    def trained_encoders(self, family: Family, base: BaseModelSpec) -> frozenset[str]:
        return self.lora.trained_encoders(family, base) | self.inversion.trained_encoders(family, base)

    def hidden_words(self) -> tuple[str, ...]:
        return self.inversion.hidden_words()

    def trains_base(self) -> bool:
        return False

    def check(self, family: Family, spec: RunSpec) -> list[str]:
        return [*self.inversion.check(family, spec), *self.lora.check(family, spec)]

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        """The LoRA first: it freezes what it adapts and then takes all that trains there for its own."""
        return [*self.lora.attach(parts, seed), *self.inversion.attach(parts, seed)]

    def regularizer(self) -> Tensor | None:
        return self.inversion.regularizer()  # a LoRA has none

    def after_step(self, step: int):
        self.lora.after_step(step)
        self.inversion.after_step(step)

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> Saved:
        """Two files; the smaller of the two changes is reported, so that a part which learned nothing shows."""
        lora = self.lora.save(parts, folder, name, metadata)
        word = self.inversion.save(parts, folder, f"{name}_embedding", metadata)
        return lora.model_copy(update={
            "files": (*lora.files, *word.files), "change_norm": min(lora.change_norm, word.change_norm),
            "token": word.token, "vectors": word.vectors})
