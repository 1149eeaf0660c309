"""What every kind of text encoder is to the families that are told by it."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ...memory.placement import Place
from ...spec import BaseModelSpec
from ..component_recognition import Kind
from ..conditioning import Conditioning
from ..protocol import TextEncoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class EncoderKind(Protocol):
    @property
    def kind(self) -> Kind:
        """As headers tell it."""
        ...

    def width_of(self, read: int) -> int:
        """Of its own states, where a denoiser reads so much of it; 0: any."""
        ...

    @property
    def learns(self) -> bool:
        """Whether it can be trained: programs read what was learned."""
        ...

    @property
    def is_large(self) -> bool:
        """Left as it is, unless that is asked for."""
        ...

    @property
    def takes_length(self) -> bool:
        """`TextEncoders.text_length` counts."""
        ...

    @property
    def cuts(self) -> bool:
        """Captions with more tokens than fit are cut."""
        ...

    def weights(self, base: BaseModelSpec, component: str) -> int:
        """How many numbers are loaded, by the header."""
        ...

    def identity(self, base: BaseModelSpec, component: str, memory: Path) -> Sequence:
        """What its states depend on besides captions and tokenizers in the base, as JSON."""
        ...

    def load(self, base: BaseModelSpec, component: str, dtype: torch.dtype, place: Place) -> "PreTrainedModel":
        """Frozen, in evaluation mode, on the CPU or where `place` puts its weights. UserError when weights are missing."""
        ...

    def load_tokenizer(self, base: BaseModelSpec, component: str) -> "PreTrainedTokenizerBase": ...

    def token_count(self, tokenizer: "PreTrainedTokenizerBase", caption: str) -> tuple[int, int]:
        """(tokens of the caption, tokens that fit)."""
        ...

    def encode(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """What families read of it that say nothing else; states of tokens are "hidden"."""
        ...

    @property
    def lora_target(self) -> str:
        """Regular expression over its modules."""
        ...

    def lora_key(self, encoder_name: str, module_name: str) -> str:
        """The name of a layer in LoRA files."""
        ...

    def file_name(self, name: str) -> str | None:
        """The name in a file of its own of a tensor in memory or in a folder; None for what such files do not hold."""
        ...


@dataclass(frozen=True)
class TextPart:
    """A text encoder of a family: its component, where an all-in-one file keeps it (its name in ComfyUI), and its kind."""

    component: str
    native: str
    kind: EncoderKind
    files: tuple[str, ...]
    """Names that people have it by, the best first."""
    required: bool = True
    read: int = 0
    """Width of what the denoiser reads of it, where models of the family differ in that and in their text encoders."""

    @property
    def prefix(self) -> str:
        return f"text_encoders.{self.native}.transformer."
