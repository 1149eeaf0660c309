"""What text encoders say of captions, and loading T5: tensor after tensor, since it is larger than most denoisers."""
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..memory.placement import Place, assign
from ..spec import BaseModelSpec
from ..words import whole_word
from . import text_loading
from .component_configs import component_config
from .component_loading import explained
from .filling import fill, without_weights
from .model_parts import ModelParts
from .protocol import TextEncoders

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

TIED = {"encoder.embed_tokens.weight": "shared.weight"}
"""T5's module has its vocabulary under two names, files have it under one."""
CLIP_LORA_TARGET = r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$"
T5_LORA_TARGET = r"SelfAttention\.(q|k|v|o)$|DenseReluDense\.(wi_0|wi_1|wo)$"


def clip_states(text: TextEncoders, encoder: str, captions: Sequence[str]) -> Any:
    """CLIP's output with all hidden states, for tokens cut and padded to its length."""
    return text.encoders[encoder](text_loading.tokenize(text, encoder, captions), output_hidden_states=True)


def clip_token_count(tokenizers: Mapping[str, "PreTrainedTokenizerBase"], caption: str) -> tuple[int, int]:
    """(tokens of the caption, tokens that fit). Two places of CLIP's length go to the start and end tokens."""
    tokenizer = next(iter(tokenizers.values()))
    return len(tokenizer(caption, truncation=False, verbose=False).input_ids) - 2, tokenizer.model_max_length - 2


def clip_key(encoder_name: str, module_name: str) -> str:
    """The name of CLIP's layer in LoRA files. Since transformers 5.6 the names of CLIPTextModel's modules lack
    `text_model.`."""
    return f"lora_{encoder_name}_text_model_" + module_name.removeprefix("text_model.").replace(".", "_")


def final_norm(encoder: "PreTrainedModel") -> nn.Module:
    """The layer norm after CLIP's last layer; transformers 5.6 moved it up from `text_model`."""
    return getattr(encoder, "text_model", encoder).get_submodule("final_layer_norm")


def load_t5(base: BaseModelSpec, component: str, dtype: torch.dtype, place: Place = assign) -> "T5EncoderModel":
    """T5's encoder, frozen, in evaluation mode, on the CPU. UserError when weights are missing."""
    from transformers import T5Config, T5EncoderModel

    entries = ModelParts.of(base)[component].entries()
    entries |= {name: entries[source] for name, source in TIED.items() if name not in entries and source in entries}
    with explained(component.replace("_", " "), base):
        config = T5Config.from_dict(component_config(base, component))
        model = without_weights(lambda: T5EncoderModel(config))
        fill(model, entries, dtype, base.name, place)
        model.encoder.embed_tokens.weight = model.shared.weight
    return model.requires_grad_(False).eval()


def t5_states(text: TextEncoders, encoder: str, captions: Sequence[str], shortest: int) -> Tensor:
    """T5's last states, float [batch, tokens, width], without a mask, as ComfyUI asks for them: captions are padded to
    `shortest` tokens and longer ones are read whole. `text.text_length`, where it is not 0, is the length of all.

    Captions of different lengths make a batch of their own each: call it with one, or with captions of one length.
    """
    ids = t5_ids(text, encoder, captions, shortest)
    module = text.encoders[encoder]
    return module(ids.to(next(module.parameters()).device)).last_hidden_state


def t5_ids(text: TextEncoders, encoder: str, captions: Sequence[str], shortest: int) -> Tensor:
    """Token ids, int64 [batch, tokens], end token and padding (0) included."""
    for word, replacement in text.aliases.items():
        captions = [whole_word(word).sub(replacement, caption) for caption in captions]
    rows = [text.tokenizers[encoder](caption, truncation=False, verbose=False).input_ids for caption in captions]
    length = text.text_length or max(shortest, *(len(row) for row in rows))
    end = rows[0][-1]
    rows = [row if len(row) <= length else [*row[:length - 1], end] for row in rows]
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
