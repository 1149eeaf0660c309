"""The released models of a family that train or sample differently, and what people should know of those that were distilled
to make images in few steps. What the header of a file does not tell is guessed from its name, and shown."""
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..spec import BaseModelSpec
from .protocol import Guidance, UsualSampling

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Variant:
    """A released model of a family. `named` is a regular expression that its file's or folder's name holds, in small letters
    and with "-" for all that is neither letter nor digit ("z-image-turbo-bf16-safetensors"); "" is in every name."""

    title: str
    """What people call it, for example "FLUX.1 schnell"."""
    named: str = ""
    fits: Callable[[Shapes], bool] = lambda shapes: True
    """Whether it has tensors of these native names and shapes, where a header tells it from others."""
    guidance: Guidance = "classifier-free"
    sampling: UsualSampling = UsualSampling()
    distilled: bool = False
    """Made out of another model to need few steps: training undoes that bit by bit."""
    instead: str = ""
    """Of a distilled model: what to train on in its place, for example "FLUX.1 dev, whose LoRAs work with schnell too"."""
    assistant: str = ""
    """Of a distilled model: the LoRA that is published to be on while it is trained."""

    @property
    def note(self) -> str:
        """What happens when it is trained, and what to do, as a clause; empty for what is not distilled."""
        if not self.distilled:
            return ""
        offers = [f"train on {self.instead}"] if self.instead else []
        if self.assistant:
            offers.append(f"put an assistant LoRA on it (the node Assistant LoRA; {self.assistant}), which is on while "
                          "training, off in previews and not in the result")
        offers.append("keep the run short")
        listed = ", ".join(offers[:-1]) + (", or " if len(offers) > 1 else "") + offers[-1]
        return (f"{self.title} was distilled to make images in {self.sampling.steps} steps, and training undoes that bit by "
                f"bit: images become soft or noisy. {listed[0].upper()}{listed[1:]}")


class Released:
    """What a family says of its released models. `variants` are in the order in which they are tried; of those that a header
    does not tell apart the last is what a name says nothing of."""

    title: str
    variants: ClassVar[Sequence[Variant]] = ()

    def native_shapes(self, base: BaseModelSpec) -> Shapes:
        raise NotImplementedError

    def variant(self, base: BaseModelSpec) -> Variant:
        """The released model that a base is."""
        fitting = self._fitting(base)
        name = re.sub(r"[^a-z0-9]+", "-", base.name.lower())
        return next((each for each in fitting if re.search(each.named, name)), fitting[-1])

    def _fitting(self, base: BaseModelSpec) -> list[Variant]:
        """Those that have the base's tensors, and are what somebody said of it."""
        shapes = self.native_shapes(base) if self.variants else {}
        fitting = [each for each in self.variants if each.fits(shapes)] or [Variant(self.title)]
        said = [each for each in fitting if base.variant in ("", "distilled" if each.distilled else "base")]
        return said or fitting

    def base_title(self, base: BaseModelSpec) -> str:
        variant = self.variant(base)
        return variant.title if len(self._fitting(base)) == 1 else f"{variant.title} (by its name)"

    def base_notes(self, base: BaseModelSpec) -> list[str]:
        """Nothing of a distilled model whose assistant is on: what is to be said then, the run says."""
        note = self.variant(base).note if base.assistant is None else ""
        return [note] if note else []

    def guidance(self, base: BaseModelSpec) -> Guidance:
        return self.variant(base).guidance

    def usual_sampling(self, base: BaseModelSpec) -> UsualSampling:
        return self.variant(base).sampling
