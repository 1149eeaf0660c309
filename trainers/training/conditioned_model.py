"""What the loop calls: a denoiser with its conditioning, and the text encoders while they train."""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from ..families.conditioning import Conditioning
from ..families.protocol import Family, TextEncoders
from .batches import Batch


class ConditionedModel(nn.Module):
    """`text` is None when captions were encoded beforehand. One module, so that accelerate wraps all that trains. `around`
    surrounds each call of the denoiser."""

    def __init__(self, family: Family, denoiser: nn.Module, text: TextEncoders | None,
                 around: Callable[[], AbstractContextManager] = nullcontext):
        super().__init__()
        self.family, self.denoiser, self.text, self.around = family, denoiser, text, around

    def forward(self, latents: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        conditioning = batch.conditioning | self.condition(batch.captions)
        with self.around():
            return self.family.predict(self.denoiser, latents, timesteps, conditioning)

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Of captions, while the text encoders train; empty when captions were encoded beforehand."""
        return self.family.encode_captions(self.text, captions) if self.text else Conditioning()
