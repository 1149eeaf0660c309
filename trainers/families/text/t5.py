"""T5's encoder: read tensor after tensor, since it is larger than most denoisers, and told captions of any length."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ...memory.placement import Place, assign
from ...spec import BaseModelSpec
from ...words import whole_word
from ..component_configs import CONFIGS, component_config
from ..component_loading import explained
from ..conditioning import Conditioning
from ..filling import fill, without_weights
from ..kl_latents import content_of
from ..model_parts import ModelParts
from ..protocol import TextEncoders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, T5EncoderModel

TOKENIZER = CONFIGS / "t5_tokenizer"
"""The vocabulary is the same for encoders of every size."""
TIED = {"encoder.embed_tokens.weight": "shared.weight"}
"""The module has its vocabulary under two names, files have it under one."""
FILES = ("t5xxl_fp16.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors", "t5xxl_fp8_e4m3fn.safetensors")
"""Names that people have T5-XXL's encoder by, the best first (ComfyUI's documentation)."""


@dataclass(frozen=True)
class T5:
    """How a family is told by T5: without a mask captions are padded to `shortest` tokens, as ComfyUI pads them, and the
    denoiser sees the padding. Longer ones are read whole."""

    shortest: int
    longest: int
    """Tokens that the denoiser was trained with; more are read, and known less well."""
    masked: bool = False
    """The tokens of a caption do not see padding, and of the padding the denoiser sees one token."""
    kind: Literal["t5"] = field(default="t5", init=False)
    learns = is_large = takes_length = True
    cuts = False
    lora_target = r"SelfAttention\.(q|k|v|o)$|DenseReluDense\.(wi_0|wi_1|wo)$"

    def width_of(self, read: int) -> int:
        return read

    def weights(self, base: BaseModelSpec, component: str) -> int:
        return sum(prod(entry.shape) for entry in ModelParts.of(base)[component].entries().values())

    def identity(self, base: BaseModelSpec, component: str, memory: Path) -> Sequence:
        return content_of(base, memory, [component])[0]

    def load(self, base: BaseModelSpec, component: str, dtype: torch.dtype, place: Place = assign) -> "T5EncoderModel":
        from transformers import T5Config, T5EncoderModel

        entries = ModelParts.of(base)[component].entries()
        entries |= {name: entries[source] for name, source in TIED.items() if name not in entries and source in entries}
        with explained(component.replace("_", " "), base):
            config = T5Config.from_dict(component_config(base, component))
            model = without_weights(lambda: T5EncoderModel(config))
            fill(model, entries, dtype, base.name, place)
            model.encoder.embed_tokens.weight = model.shared.weight
        return model.requires_grad_(False).eval()

    def load_tokenizer(self, base: BaseModelSpec, component: str) -> "PreTrainedTokenizerBase":
        return t5_tokenizer()

    def token_count(self, tokenizer: "PreTrainedTokenizerBase", caption: str) -> tuple[int, int]:
        """Without the token for the end."""
        return len(_ids(tokenizer, caption)) - 1, self.longest - 1

    def encode(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """Last states, float [batch, tokens, width]. `text.text_length`, where it is not 0, is the length of all, or with a
        mask the length at which captions are cut."""
        if self.masked:
            return Conditioning.collated([self._alone(text, encoder, caption) for caption in captions])
        ids = t5_ids(text, encoder, captions, self.shortest)
        module = text.encoders[encoder]
        return Conditioning({"hidden": module(ids.to(next(module.parameters()).device)).last_hidden_state})

    def _alone(self, text: TextEncoders, encoder: str, caption: str) -> Conditioning:
        ids, module = t5_ids(text, encoder, [caption], 0, padded=False), text.encoders[encoder]
        if not text.text_length or ids.shape[1] < text.text_length:
            ids = torch.nn.functional.pad(ids, (0, 1))
        seen = ids != 0
        ids, seen = (each.to(next(module.parameters()).device) for each in (ids, seen))
        return Conditioning({"hidden": module(ids, attention_mask=seen).last_hidden_state})

    def lora_key(self, encoder_name: str, module_name: str) -> str:
        return f"lora_{encoder_name}_{module_name.replace('.', '_')}"

    def file_name(self, name: str) -> str | None:
        return None if name in TIED else name


def t5_tokenizer() -> "PreTrainedTokenizerBase":
    """T5's vocabulary, without any base model: 32100 tokens, "</s>" (1) at the end of a text, padded with "<pad>" (0), of
    any length unless a call says `max_length`. The class is ComfyUI's, so that ids are the same in every version of it."""
    import transformers

    library: Any = transformers  # whose types do not know the class since version 5
    return library.T5TokenizerFast.from_pretrained(TOKENIZER, local_files_only=True)


def t5_ids(text: TextEncoders, tokenizer: str, captions: Sequence[str], shortest: int, padded: bool = True) -> torch.Tensor:
    """Token ids, int64 [batch, tokens], with the end token (1) and padding (0)."""
    for word, replacement in text.aliases.items():
        captions = [whole_word(word).sub(replacement, caption) for caption in captions]
    rows = [_ids(text.tokenizers[tokenizer], caption) for caption in captions]
    length = text.text_length or max(shortest, *(len(row) for row in rows))
    end = rows[0][-1]
    rows = [row if len(row) <= length else [*row[:length - 1], end] for row in rows]
    return torch.tensor([[*row, *[0] * (length - len(row) if padded else 0)] for row in rows])


def _ids(tokenizer: "PreTrainedTokenizerBase", caption: str) -> list[int]:
    return tokenizer(caption, truncation=False, verbose=False).input_ids
