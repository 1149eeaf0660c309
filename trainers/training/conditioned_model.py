"""What the loop calls: a denoiser with its conditioning, and the text encoders while they train."""
from collections.abc import Sequence

from torch import Tensor, nn

from ..families.conditioning import Conditioning
from ..families.protocol import Family, TextEncoders
from .batches import Batch


class ConditionedModel(nn.Module):
    """`text` is None when captions were encoded beforehand. One module, so that accelerate wraps all that trains."""

    def __init__(self, family: Family, denoiser: nn.Module, text: TextEncoders | None):
        super().__init__()
        self.family, self.denoiser, self.text = family, denoiser, text

    def forward(self, latents: Tensor, timesteps: Tensor, batch: Batch) -> Tensor:
        conditioning = batch.conditioning | self.condition(batch.captions)
        return self.family.predict(self.denoiser, latents, timesteps, conditioning)

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """Of captions, while the text encoders train; empty when captions were encoded beforehand."""
        return self.family.encode_captions(self.text, captions) if self.text else Conditioning()
