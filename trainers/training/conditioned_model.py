"""What the loop calls: a denoiser with its conditioning, and the text encoders while they train."""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from ..families.conditioning import Conditioning
from ..families.protocol import Family, TextEncoders
from .batches import Batch


class ConditionedModel(nn.Module):
    """`text` holds those of the `encoders` of the base that train; None when captions were encoded beforehand. One module,
    so that accelerate wraps all that trains. `around` surrounds each call of the denoiser."""

    denoiser: Any
    """A module that can checkpoint its gradients, as diffusers' can."""

    def __init__(self, family: Family, denoiser: nn.Module, text: TextEncoders | None, encoders: Sequence[str],
                 around: Callable[[], AbstractContextManager] = nullcontext):
        super().__init__()
        self.family, self.denoiser, self.text, self.encoders, self.around = family, denoiser, text, encoders, around

    def forward(self, latents: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        conditioning = self.condition(batch.captions, batch.conditioning)
        with self.around():
            return self.family.predict(self.denoiser, latents, timesteps, conditioning)

    def enable_gradient_checkpointing(self):
        self.denoiser.enable_gradient_checkpointing()
        for encoder in self.text.encoders.values() if self.text else ():
            encoder.gradient_checkpointing_enable({"use_reentrant": False})

    def condition(self, captions: Sequence[str], known: Conditioning) -> Conditioning:
        """`known` with what is not known of captions beforehand, because text encoders train."""
        if not self.text:
            return known
        said = {name: self._live(self.text, name, captions) if name in self.text.encoders else known.said_by(name)
                for name in self.encoders}
        return known.unlabeled() | self.family.joined(said)

    def _live(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """Large encoders take captions of any length: one by one, so that none is padded to the length of another."""
        if encoder not in self.family.large_encoders:
            return self.family.encode_with(text, encoder, captions)
        return Conditioning.collated([self.family.encode_with(text, encoder, [caption]) for caption in captions])
