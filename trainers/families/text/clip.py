"""CLIP's text encoders, in transformers' or in OpenCLIP's layout.

transformers is imported where it is needed, as `component_loading` says.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...artifacts.ldm_layout import transformers_clip_tensors
from ...errors import UserError
from ...memory.placement import Place, assign, settle
from ...spec import BaseModelSpec
from ...words import whole_word
from ..checkpoint_writing import plain
from ..component_configs import CONFIGS, component_config
from ..component_loading import explained
from ..conditioning import Conditioning
from ..kl_latents import content_of
from ..model_parts import ModelParts
from ..protocol import TextEncoders

if TYPE_CHECKING:
    from transformers import (
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

Encoder = TypeVar("Encoder", bound=nn.Module)

TOKENIZER = CONFIGS / "clip_tokenizer"
"""CLIP's vocabulary is the same for every encoder of these families; only the padding token differs."""
LORA_TARGET = r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$"
LONGEST_VOCABULARY = 50_000_000
"""Bytes of a file of a tokenizer; CLIP's has one million."""


def load_encoder(base: BaseModelSpec, component: str, dtype: torch.dtype, make: Callable[[dict], Encoder],
                 renamed: Callable[[dict[str, Tensor], Encoder], dict[str, Tensor]] = lambda weights, model: weights,
                 place: Place = assign) -> Encoder:
    """Any text encoder, frozen, in evaluation mode, on the CPU. `make(config)` builds it without weights, `renamed` gives
    the weights of the part the names that it has. Raises UserError when weights are missing."""
    part = ModelParts.of(base)[component]
    with explained(component.replace("_", " "), base):
        model = make(component_config(base, component))
        _fill(model, renamed(part.tensors(), model), base.name)
    model = model.to(dtype).requires_grad_(False).eval()
    settle(model, place)
    return model


def load_clip(base: BaseModelSpec, component: str, dtype: torch.dtype,
              projection: bool = False, place: Place = assign) -> "CLIPTextModel | CLIPTextModelWithProjection":
    """A CLIP text encoder, in transformers' or in OpenCLIP's layout."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    model_class = CLIPTextModelWithProjection if projection else CLIPTextModel
    open_clip = any(name.startswith("transformer.resblocks.") for name in ModelParts.of(base)[component].entries())
    return load_encoder(
        base, component, dtype, lambda config: model_class(CLIPTextConfig.from_dict(config)),
        lambda weights, model: transformers_clip_tensors(weights, model.config.num_hidden_layers) if open_clip else weights,
        place)


def _fill(model: nn.Module, weights: Mapping[str, Tensor], title: str):
    wanted = model.state_dict()
    # Old files lack the text_model. prefix, and so do the modules of CLIPTextModel since transformers 5.6.
    bare = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    found = {name: bare[name.removeprefix("text_model.")] for name in wanted if name.removeprefix("text_model.") in bare}
    missing = [name for name in wanted if name not in found and not name.endswith("position_ids")]
    if missing:
        raise UserError(f"{title!r} holds no complete text encoder: {missing[0]} and {len(missing) - 1} more "
                        "weights are missing. Use a full checkpoint, not one with the denoiser alone.")
    model.load_state_dict(found, strict=False)


def load_tokenizer(base: BaseModelSpec, component: str, pad_token: str) -> "CLIPTokenizer":
    """The folder's own, or CLIP's vocabulary with the padding of this encoder."""
    from transformers import CLIPTokenizer

    parts = ModelParts.of(base)
    if component in parts and (parts[component].path / "vocab.json").exists():
        require_ordinary(parts[component].path, base.name)
        with explained("tokenizer", base):
            return CLIPTokenizer.from_pretrained(parts[component].path, local_files_only=True)
    return clip_tokenizer(pad_token)


def require_ordinary(folder: Path, title: str):
    """Raise UserError where a file is too large for one of a tokenizer."""
    large = [file.name for file in folder.iterdir() if file.stat().st_size > LONGEST_VOCABULARY]
    if large:
        raise UserError(f"{title!r} is damaged: {folder.name}/{large[0]} is no file of a tokenizer. Download the model "
                        "again.")


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> "CLIPTokenizer":
    """CLIP's vocabulary, without any base model."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad_token, local_files_only=True)


def tokenize(text: TextEncoders, encoder: str, captions: Sequence[str]) -> Tensor:
    """Token ids, int64 [batch, 77], cut at the encoder's length, on the encoder's device."""
    tokenizer, module = text.tokenizers[encoder], text.encoders[encoder]
    for word, replacement in text.aliases.items():
        captions = [whole_word(word).sub(replacement, caption) for caption in captions]
    batch = tokenizer(list(captions), padding="max_length", max_length=module.config.max_position_embeddings,
                      truncation=True, return_tensors="pt")
    return batch.input_ids.to(next(module.parameters()).device)


def states(text: TextEncoders, encoder: str, captions: Sequence[str]) -> Any:
    """The encoder's output with all hidden states, for tokens cut and padded to its length."""
    return text.encoders[encoder](tokenize(text, encoder, captions), output_hidden_states=True)


def token_count(tokenizer: "PreTrainedTokenizerBase", caption: str) -> tuple[int, int]:
    """(tokens of the caption, tokens that fit). Two places of CLIP's length go to the start and end tokens."""
    return len(tokenizer(caption, truncation=False, verbose=False).input_ids) - 2, tokenizer.model_max_length - 2


def lora_key(encoder_name: str, module_name: str) -> str:
    """The name of a layer in LoRA files. Since transformers 5.6 the names of CLIPTextModel's modules lack `text_model.`."""
    return f"lora_{encoder_name}_text_model_" + module_name.removeprefix("text_model.").replace(".", "_")


def final_norm(encoder: "PreTrainedModel") -> nn.Module:
    """The layer norm after the last layer; transformers 5.6 moved it up from `text_model`."""
    return getattr(encoder, "text_model", encoder).get_submodule("final_layer_norm")


@dataclass(frozen=True)
class Clip:
    """CLIP as a kind of text encoder of transformer families."""

    kind: Literal["clip_l", "clip_g"]
    pad_token: str = "<|endoftext|>"
    projection: bool = False
    """Of the pooled state."""
    learns, is_large, takes_length, cuts = True, False, False, True
    lora_target = LORA_TARGET

    def width_of(self, read: int) -> int:
        return 0

    def weights(self, base: BaseModelSpec, component: str) -> int:
        return sum(prod(entry.shape) for entry in ModelParts.of(base)[component].entries().values())

    def identity(self, base: BaseModelSpec, component: str, memory: Path) -> Sequence:
        return content_of(base, memory, [component])[0]

    def load(self, base: BaseModelSpec, component: str, dtype: torch.dtype, place: Place) -> "PreTrainedModel":
        return load_clip(base, component, dtype, self.projection, place)

    def load_tokenizer(self, base: BaseModelSpec, component: str) -> "PreTrainedTokenizerBase":
        return load_tokenizer(base, component.replace("text_encoder", "tokenizer"), self.pad_token)

    def token_count(self, tokenizer: "PreTrainedTokenizerBase", caption: str) -> tuple[int, int]:
        return token_count(tokenizer, caption)

    def encode(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """The pooled state, without the projection."""
        return Conditioning({"pooled": states(text, encoder, captions).pooler_output})

    def lora_key(self, encoder_name: str, module_name: str) -> str:
        return lora_key(encoder_name, module_name)

    def file_name(self, name: str) -> str | None:
        if name.endswith("position_ids"):
            return None
        return name if name.startswith("text_projection") else f"text_model.{plain(name)}"


CLIP_L, CLIP_G = Clip("clip_l"), Clip("clip_g", "!", projection=True)
