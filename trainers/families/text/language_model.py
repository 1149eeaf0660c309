"""Language models as text encoders: the layers up to the last state that is read, without what sees images and what writes.

A model that also sees images reads text as one that does not: places of a text are the same on all axes of its positions. So
three of transformers' classes serve all models here.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...artifacts.tensor_files import Entry
from ...errors import UserError
from ...memory.placement import Place, assign
from ...spec import BaseModelSpec
from ...words import whole_word
from ..component_configs import read_object
from ..component_loading import explained
from ..conditioning import Conditioning
from ..filling import fill, without_weights
from ..language_model_recognition import LanguageKind
from ..model_parts import ModelParts
from ..protocol import TextEncoders
from .qwen_words import PADDING, qwen_tokenizer
from .taps import Tap
from .tekken import tekken_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

READ = re.compile(r"^(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.)?"
                  r"((?:layers\.\d{1,3}|embed_tokens|norm)\.[\w.]+)$")
"""Names of what reads text, wherever a model that sees images keeps it."""
KEY, WORDS, LAYER = "layers.0.self_attn.k_proj.weight", "embed_tokens.weight", re.compile(r"layers\.(\d{1,3})\.")


@dataclass(frozen=True)
class Architecture:
    """A language model of any size: what the shapes of its weights do not tell."""

    kind: LanguageKind
    library: Literal["Qwen2", "Qwen3", "Mistral"]
    """transformers' name of the layers that read text."""
    theta: float
    """Base of the angles by which places turn queries and keys."""
    head: int = 128
    """Width of an attention head, where no norm tells it."""
    epsilon: float = 1e-6
    padding: int = PADDING
    """The token."""
    start: tuple[int, ...] = ()
    """Tokens before every text."""


QWEN3 = Architecture("qwen3", "Qwen3", 1e6)
QWEN25_VL = Architecture("qwen25_vl", "Qwen2", 1e6)
QWEN3_VL = Architecture("qwen3_vl", "Qwen3", 5e6)
MISTRAL = Architecture("mistral", "Mistral", 1e9, epsilon=1e-5, padding=11, start=(1,))


@dataclass(frozen=True)
class LanguageModel:
    """A language model and what a family reads of it. It stays as it is: the denoiser was trained on what it says, it is
    larger than most denoisers, and LoRAs for it have no names that programs agree on."""

    architecture: Architecture
    tap: Tap
    learns = takes_length = cuts = False
    is_large = True
    lora_target = r"(?!)"

    @property
    def kind(self) -> LanguageKind:
        return self.architecture.kind

    def width_of(self, read: int) -> int:
        return read if self.tap.stacked else read // len(self.tap.states)

    def weights(self, base: BaseModelSpec, component: str) -> int:
        entries = _text_layers(ModelParts.of(base)[component].entries())
        return sum(prod(entry.shape) for name, entry in entries.items()
                   if name == WORDS or ((layer := LAYER.match(name)) and int(layer[1]) < self._layers(entries)[0]))

    def identity(self, base: BaseModelSpec, component: str, memory: Path) -> Sequence:
        return [ModelParts.of(base)[component].fingerprint(memory), asdict(self._stated(base, component)),
                asdict(self.tap)]

    # ---- loading ---------------------------------------------------------------------------------------------------

    def load(self, base: BaseModelSpec, component: str, dtype: torch.dtype, place: Place = assign) -> "PreTrainedModel":
        title = component.replace("_", " ")
        with explained(title, base):
            entries = _text_layers(ModelParts.of(base)[component].entries())
            if WORDS not in entries or KEY not in entries:
                raise UserError(f"{base.name!r} holds no whole language model as its {title}. Download its file again.")
            last, there = self._layers(entries)
            if not 0 < last <= there:
                raise UserError(f"The {title} of {base.name!r} has {there} layers, and what layer {last} says is read. "
                                "Choose the whole model.")
            model = without_weights(lambda: self._empty(entries, last, self._stated(base, component)))
            if not self.tap.normed:
                model.norm = nn.Identity()
            model.rotary_emb = type(model.rotary_emb)(config=model.config)
            fill(model, entries, dtype, base.name, place)
        return model.requires_grad_(False).eval()

    def _layers(self, entries: Mapping[str, Entry]) -> tuple[int, int]:
        """(layers that are read, layers that there are)."""
        there = 1 + max((int(layer[1]) for name in entries if (layer := LAYER.match(name))), default=-1)
        return max(state if state >= 0 else there + 1 + state for state in self.tap.states), there

    def _empty(self, entries: Mapping[str, Entry], layers: int, known: Architecture) -> Any:
        import transformers

        if not hasattr(transformers, f"{known.library}Model"):
            raise UserError(f"{known.library} as a text encoder needs transformers 4.51, and {transformers.__version__} is "
                            "installed. Update it.")

        def rows(name: str) -> int:
            return entries[name].shape[0]

        vocabulary, width = entries[WORDS].shape
        norm = entries.get("layers.0.self_attn.q_norm.weight")
        head = norm.shape[0] if norm else known.head
        config = getattr(transformers, f"{known.library}Config")(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=rows("layers.0.mlp.gate_proj.weight"),
            num_hidden_layers=layers, num_attention_heads=rows("layers.0.self_attn.q_proj.weight") // head,
            num_key_value_heads=rows(KEY) // head, head_dim=head, rms_norm_eps=known.epsilon, rope_theta=known.theta,
            sliding_window=None, use_cache=False, attn_implementation="sdpa")
        return getattr(transformers, f"{known.library}Model")(config)

    def _stated(self, base: BaseModelSpec, component: str) -> Architecture:
        """With what the config in a folder says, wherever versions of transformers keep it."""
        part = ModelParts.of(base)[component]
        config = read_object(part.path / "config.json") if part.is_folder else None
        config = (config or {}).get("text_config") or config or {}
        places = (config.get("rope_parameters"), config.get("rope_scaling"), config)
        thetas = [place.get("rope_theta") for place in places if isinstance(place, dict)]
        return replace(self.architecture, theta=_first(thetas, 1, 1e12, self.architecture.theta),
                       epsilon=_first([config.get("rms_norm_eps")], 0, 1, self.architecture.epsilon))

    # ---- words -----------------------------------------------------------------------------------------------------

    def load_tokenizer(self, base: BaseModelSpec, component: str) -> "PreTrainedTokenizerBase":
        return tekken_tokenizer(base, component) if self.architecture.kind == "mistral" else qwen_tokenizer()

    def token_count(self, tokenizer: "PreTrainedTokenizerBase", caption: str) -> tuple[int, int]:
        around = len(self.ids(tokenizer, ""))
        return len(self.ids(tokenizer, caption)) - around, self.tap.longest - around

    def ids(self, tokenizer: "PreTrainedTokenizerBase", caption: str) -> list[int]:
        """Of a caption and what stands around it."""
        return [*self.architecture.start, *_ids(tokenizer, f"{self.tap.before}{caption}{self.tap.after}")]

    # ---- states ----------------------------------------------------------------------------------------------------

    def encode(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """The states that the family reads, float [batch, tokens, width of all], or [batch, tokens, states, width] where
        they are stacked."""
        for word, replacement in text.aliases.items():
            captions = [whole_word(word).sub(replacement, caption) for caption in captions]
        return Conditioning.collated([
            Conditioning({"hidden": self._states(text.encoders[encoder], text.tokenizers[encoder], caption)})
            for caption in captions])

    def _states(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", caption: str) -> Tensor:
        tap, ids = self.tap, self.ids(tokenizer, caption or self.tap.empty)
        real, wanted = max(len(ids), 1), max(tap.shortest, tap.multiple * ceil(len(ids) / tap.multiple), len(ids))
        tokens = real if tap.pads_with_zeros else wanted
        device = next(model.parameters()).device
        places = torch.arange(tokens, device=device)
        words = torch.full((1, tokens), self.architecture.padding, device=device)
        words[0, :len(ids)] = torch.tensor(ids, dtype=torch.long)
        if tap.pad_position is not None:
            places[real:] = tap.pad_position
        said = model(words, attention_mask=(torch.arange(tokens, device=device) < real)[None].long(),
                     position_ids=places[None], output_hidden_states=True, use_cache=False).hidden_states
        last = max(tap.states)  # nothing behind it is loaded
        chosen = [said[len(said) - 1 + state - last] for state in tap.states]
        states = torch.stack(chosen, dim=2) if tap.stacked else torch.cat(chosen, dim=-1)
        states = states[:, len(_ids(tokenizer, tap.dropped)):]
        return F.pad(states, (*(0, 0) * (states.ndim - 2), wanted - tokens, 0)) if tap.pads_with_zeros else states

    # ---- names -----------------------------------------------------------------------------------------------------

    def lora_key(self, encoder_name: str, module_name: str) -> str:
        raise ValueError("language models learn nothing")

    def file_name(self, name: str) -> str | None:
        """As ComfyUI has it in all-in-one files, without what sees images and what writes."""
        read = READ.search(name)
        return f"model.{read[1]}" if read else None


def _text_layers(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those of the layers that read text, by transformers' names: without "model." and "language_model." before them."""
    return {read[1]: entry for name, entry in entries.items() if (read := READ.search(name))}


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(text, truncation=False, verbose=False, add_special_tokens=False).input_ids


def _first(values: Sequence[Any], low: float, high: float, otherwise: float) -> float:
    """The first number between two others, which it is not itself."""
    return next((float(value) for value in values if isinstance(value, (int, float)) and low < value < high), otherwise)
