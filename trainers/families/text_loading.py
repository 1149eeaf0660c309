"""Loads tokenizers and text encoders from wherever a model's parts lie, offline, by transformers.

transformers is imported where it is needed, as `component_loading` says.
"""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..artifacts.ldm_layout import transformers_clip_tensors
from ..errors import UserError
from ..memory.placement import Place, assign, settle
from ..spec import BaseModelSpec
from ..words import whole_word
from .component_configs import CONFIGS, component_config
from .component_loading import explained
from .model_parts import ModelParts
from .protocol import TextEncoders

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerBase

Encoder = TypeVar("Encoder", bound=nn.Module)

TOKENIZER = CONFIGS / "clip_tokenizer"
"""CLIP's vocabulary is the same for every encoder of these families; only the padding token differs."""
T5_TOKENIZER = CONFIGS / "t5_tokenizer"
"""T5's vocabulary is the same for encoders of every size."""
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


def t5_tokenizer() -> "PreTrainedTokenizerBase":
    """T5's vocabulary, without any base model: 32100 tokens, "</s>" (1) at the end of a text, padded with "<pad>" (0), of
    any length unless a call says `max_length`. The class is ComfyUI's, so that ids are the same in every version of it."""
    import transformers

    library: Any = transformers  # whose types do not know the class since version 5
    return library.T5TokenizerFast.from_pretrained(T5_TOKENIZER, local_files_only=True)


def tokenize(text: TextEncoders, encoder: str, captions: Sequence[str]) -> Tensor:
    """Token ids, int64 [batch, 77], cut at the encoder's length, on the encoder's device."""
    tokenizer, module = text.tokenizers[encoder], text.encoders[encoder]
    for word, replacement in text.aliases.items():
        captions = [whole_word(word).sub(replacement, caption) for caption in captions]
    batch = tokenizer(list(captions), padding="max_length", max_length=module.config.max_position_embeddings,
                      truncation=True, return_tensors="pt")
    return batch.input_ids.to(next(module.parameters()).device)
