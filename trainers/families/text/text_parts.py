"""The text encoders of a family of flow transformers, of whatever kinds."""
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ...memory.placement import Place, assign
from ...spec import BaseModelSpec
from ..conditioning import Conditioning
from ..model_parts import TOKENIZERS, ModelParts
from ..protocol import TextEncoders
from .encoder_kind import TextPart

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TextParts:
    """What a family answers about its text encoders, out of `text_parts` alone."""

    name: str
    text_parts: ClassVar[Mapping[str, TextPart]]
    """By the names that LoRA files give text encoders ("te1", …)."""

    @property
    def capabilities(self) -> frozenset[str]:
        learned = ("text_encoder", "textual_inversion") if any(part.kind.learns for part in self.text_parts.values()) else ()
        return frozenset({"lora", "full", *learned})

    @property
    def embedding_keys(self) -> Mapping[str, str]:
        return {name: part.native for name, part in self.text_parts.items() if part.kind.learns}

    @property
    def large_encoders(self) -> tuple[str, ...]:
        return tuple(name for name, part in self.text_parts.items() if part.kind.is_large)

    def read_by(self, width: int) -> dict[str, TextPart]:
        """Those of models whose denoiser reads states of this width. Of several for the same component it is the one for
        that, and the first where none is."""
        chosen: dict[str, str] = {}
        for name, part in self.text_parts.items():
            if part.component not in chosen or part.read == width:
                chosen[part.component] = name
        return {name: self.text_parts[name] for name in chosen.values()}

    def read_width(self, base: BaseModelSpec) -> int:
        """Of the states that the denoiser reads; 0 where the family's models do not differ in it."""
        raise NotImplementedError

    def present(self, base: BaseModelSpec) -> dict[str, TextPart]:
        """Those that a base has."""
        parts = ModelParts.of(base)
        alone = len({part.component for part in self.text_parts.values()}) == len(self.text_parts)
        width = 0 if alone else self.read_width(base)
        return {name: part for name, part in self.read_by(width).items() if part.component in parts}

    def encoder_names(self, base: BaseModelSpec) -> tuple[str, ...]:
        return tuple(self.present(base))

    def reads_text_length(self, base: BaseModelSpec) -> bool:
        return any(part.kind.takes_length for part in self.present(base).values())

    def reads_clip_skip(self, base: BaseModelSpec) -> bool:
        return any(part.kind.kind in ("clip_l", "clip_g") for part in self.present(base).values())

    def cuts_captions(self, base: BaseModelSpec) -> bool:
        return all(part.kind.cuts for part in self.present(base).values())

    def large_text_weights(self, base: BaseModelSpec) -> int:
        return max((part.kind.weights(base, part.component) for part in self.present(base).values() if part.kind.is_large),
                   default=0)

    def caption_identity(self, base: BaseModelSpec, memory: Path) -> Sequence:
        parts = ModelParts.of(base)
        tokenizers = [parts[name].fingerprint(memory) for name in TOKENIZERS if name in parts]
        return [self.name, tokenizers, *(part.kind.identity(base, part.component, memory)
                                         for part in self.present(base).values())]

    def load_text(self, base: BaseModelSpec, dtype: torch.dtype, only: Collection[str] | None = None,
                  place: Place = assign) -> TextEncoders:
        return TextEncoders(self.load_tokenizers(base), {
            name: part.kind.load(base, part.component, dtype, place)
            for name, part in self.present(base).items() if only is None or name in only})

    def load_tokenizers(self, base: BaseModelSpec) -> Mapping[str, "PreTrainedTokenizerBase"]:
        return {name: part.kind.load_tokenizer(base, part.component) for name, part in self.present(base).items()}

    def _counting(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"]) -> str:
        """The first large text encoder; where there is none, CLIP."""
        return next((each for each in self.large_encoders if each in tokenizers), next(iter(tokenizers)))

    def caption_tokenizer(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"]) -> "PreTrainedTokenizerBase":
        return tokenizers[self._counting(tokenizers)]

    def token_count(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], caption: str) -> tuple[int, int]:
        name = self._counting(tokenizers)
        return self.text_parts[name].kind.token_count(tokenizers[name], caption)

    def encode_with(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        return self.text_parts[encoder].kind.encode(text, encoder, captions)

    def text_lora_target(self, encoder_name: str, encoder: "PreTrainedModel") -> str:
        return self.text_parts[encoder_name].kind.lora_target

    def text_key(self, encoder_name: str, module_name: str) -> str:
        return self.text_parts[encoder_name].kind.lora_key(encoder_name, module_name)

    def text_tensors(self, encoder_name: str, module: nn.Module) -> dict[str, Tensor]:
        """Of a text encoder, by the names that files of their own have."""
        named = ((self.text_parts[encoder_name].kind.file_name(name), tensor)
                 for name, tensor in module.state_dict().items())
        return {name: tensor for name, tensor in named if name is not None}
