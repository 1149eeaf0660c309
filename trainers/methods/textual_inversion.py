"""Textual Inversion: new words for text encoders that stay as they are (Gal et al. 2022, arXiv:2208.01618)."""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import randomness
from ..artifacts.embedding import save_embedding
from ..artifacts.metadata import embedding_metadata
from ..errors import UserError
from ..families.protocol import Family
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved, SavedFile
from ..spec import BaseModelSpec, RunSpec, TextualInversionSpec
from ..vocabulary import is_common, token_ids
from ..words import clause, counted, whole_word
from .protocol import Parts, chosen_encoders, large_encoder_notes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROUNDING = 1e-6
"""Lengths this near to where they belong, relatively, are left alone: vectors that no longer train keep their bits."""


class LearnedWords(nn.Module):
    """A token embedding with new words: ids from `first` on are `vectors`, all others the frozen vocabulary's rows.

    The vocabulary is not resized and not copied, so its rows cannot change. The encoder itself never sees the new ids:
    CLIP configs written before transformers 4.30 say `eos_token_id` 2, for which the pooled output is taken at the highest
    id of a sequence. A hook before the encoder (`take_places`) replaces them and remembers where they were.
    """

    start: Tensor

    def __init__(self, vocabulary: nn.Module, vectors: Tensor, first: int, shortest: float, longest: float):
        """`vectors` float32 [vectors, width]: the start, brought to a length between `shortest` and `longest`."""
        super().__init__()
        self.vocabulary, self.first, self.shortest, self.longest = vocabulary, first, shortest, longest
        self.vectors = nn.Parameter(vectors.clone())
        self.hold_lengths()
        self.register_buffer("start", self.vectors.detach().clone(), persistent=False)
        self.places = torch.empty(0, dtype=torch.int64)

    def take_places(self, encoder: nn.Module, arguments: tuple) -> tuple:
        """Forward pre-hook of the encoder: token ids, int64 [batch, length], come first in its arguments."""
        ids, *others = arguments
        self.places = ids - self.first
        return torch.where(self.places < 0, ids, 0), *others

    def forward(self, ids: Tensor) -> Tensor:
        words = self.vocabulary(ids)
        # Always part of the graph: a batch without the word gives zero gradients, which all processes can exchange.
        learned = self.vectors[self.places.clamp(min=0)].to(words.dtype)
        return torch.where(self.places[..., None] < 0, words, learned)

    @torch.no_grad()
    def hold_lengths(self):
        lengths = self.vectors.norm(dim=1, keepdim=True)
        wanted = lengths.clamp(self.shortest, self.longest)
        astray = (wanted - lengths).abs() > ROUNDING * wanted
        self.vectors.copy_(torch.where(astray, self.vectors * wanted / lengths.clamp(min=1e-12), self.vectors))

    def similarity(self) -> Tensor:
        """Cosine of every vector to its start, [vectors]."""
        return F.cosine_similarity(self.vectors, self.start, dim=1)


class TextualInversion:
    kind = "textual_inversion"
    requires = frozenset({"textual_inversion"})

    def __init__(self, spec: TextualInversionSpec, learning_rate: float):
        self.spec, self.learning_rate = spec, learning_rate
        self.token = spec.token
        self.words: dict[str, LearnedWords] = {}

    def trained_encoders(self, family: Family, base: BaseModelSpec) -> frozenset[str]:
        return chosen_encoders(family, base, self.spec.train_t5)

    def hidden_words(self) -> tuple[str, ...]:
        """ComfyUI passes over an embedding where it encodes with a text encoder that the file has no vectors for."""
        return (self.token,)

    def trains_base(self) -> bool:
        return False

    def check(self, family: Family, spec: RunSpec) -> list[str]:
        """Settles the placeholder word too: the dataset's trigger where the spec names none."""
        self.token = self.spec.token or spec.dataset.trigger
        if not self.token:
            raise UserError("placeholder_token is empty, and the dataset has no trigger word either. Type the word that "
                            "stands for what is learned, as token on the Train node or as trigger on the dataset.")
        if " " in spec.name:
            raise UserError(f"name is {spec.name!r}, but a prompt cannot call an embedding with spaces in its name. "
                            f"Write {spec.name.replace(' ', '_')!r}.")
        notes = large_encoder_notes(family, spec.base, self.spec.train_t5, widget="word_in_t5")
        trained = self.trained_encoders(family, spec.base)
        # CLIP has room for less than T5, and the word must have its place in every caption that any of them reads.
        narrow = trained - set(family.large_encoders) or trained
        tokenizers = {name: each for name, each in family.load_tokenizers(spec.base).items() if name in narrow}
        return [*notes, *self._caption_notes(spec), *self._room_notes(family, tokenizers, spec),
                *self._word_notes(tokenizers)]

    def _caption_notes(self, spec: RunSpec) -> list[str]:
        word, images, notes = whole_word(self.token), spec.dataset.images, []
        lacking = [image for image in images if not word.search(image.variation.longest(image.caption))]
        if len(lacking) == len(images):
            raise UserError(f"No caption contains the word {self.token!r}, so nothing could be learned. Set it as trigger "
                            f"on the dataset, or choose a token that the captions use; one of them is "
                            f"{images[0].caption[:80]!r}.")
        if lacking:
            notes.append(clause(len(lacking), "caption", f"do not contain {self.token!r}, for example that of "
                                f"{lacking[0].name}; such images teach it nothing", len(images)))
        left_out = [image for image in images if image.variation.tag_dropout
                    and any(word.search(tag) for tag in image.variation.tags(image.caption)[1])]
        if left_out:
            notes.append(f"tag dropout leaves {self.token!r} out too, for example in the caption of {left_out[0].name}; "
                         "steps without it teach it nothing. Put the word first, and set keep_tags to 1")
        if spec.prior and any(word.search(image.caption) for image in spec.prior.dataset.images):
            notes.append(f"captions of class images contain {self.token!r} too, so that it learns the class as well")
        if spec.previews.every and spec.previews.prompts and not any(word.search(each) for each in spec.previews.prompts):
            notes.append(f"no preview prompt contains {self.token!r}, so the previews will not change")
        return notes

    def _room_notes(self, family: Family, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], spec: RunSpec) -> list[str]:
        """Whether captions have room for the vectors. Room is counted in tokens."""
        word, vectors, fits, long = whole_word(self.token), self.spec.vectors, False, []
        for image in spec.dataset.images:
            caption = image.variation.longest(image.caption)
            places = list(word.finditer(caption))
            if not places:
                continue
            before, room = family.token_count(tokenizers, caption[:places[0].start()])
            others, _ = family.token_count(tokenizers, word.sub(" ", caption))
            together = others + vectors * len(places)
            fits = fits or together <= room or (others > room and before + vectors <= room)
            if together > room:
                long.append((together, image.name))
        if not fits:
            raise UserError(f"vectors is {vectors}, for which no caption has room beside its other words: the text encoder "
                            f"takes {room} tokens. Use fewer vectors, or shorten the captions.")
        if not long:
            return []
        count, name = max(long)
        return [f"with {counted(vectors, 'vector')}, " + clause(
            len(long), "caption", f"are longer than the {room} tokens that the text encoder takes, and cut, that of {name} "
            f"the most ({count} tokens)")]

    def _word_notes(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"]) -> list[str]:
        notes, tokenizer = [], next(iter(tokenizers.values()))
        if all(is_common(part, tokenizer) for part in re.split(r"[\s\-]+", self.token)):
            notes.append(f"{self.token!r} is a common word that the base knows already; captions lose its meaning in this "
                         "training. An invented word cannot be mixed up with it")
        given = len(token_ids(self.spec.initial_text, tokenizer))
        if given > self.spec.vectors:
            notes.append(f"the initial text has {given} tokens, of which the first {self.spec.vectors} start the vectors; "
                         f"use {given} vectors to start from all of it")
        return notes

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        names = [f"<|learned-{number}|>" for number in range(self.spec.vectors)]
        encoders = parts.encoders(self.trained_encoders(parts.family, parts.base))
        for number, (name, encoder) in enumerate(encoders.items()):
            tokenizer, vocabulary = parts.text.tokenizers[name], encoder.get_input_embeddings()
            rows = vocabulary.get_parameter("weight")
            generator = randomness.generator(seed, randomness.INITIALIZATION, number)
            shortest, longest = self._lengths(tokenizer, rows)
            start = self._start(tokenizer, rows, generator)
            tokenizer.add_tokens(names, special_tokens=True)
            words = LearnedWords(vocabulary, start, token_ids(names[0], tokenizer)[0], shortest, longest)
            encoder.set_input_embeddings(words)
            encoder.register_forward_pre_hook(words.take_places)
            self.words[name] = words
        parts.text.aliases[self.token] = "".join(names)
        vectors = {name: words.vectors for name, words in self.words.items()}
        return [ParameterGroup("embedding", self.learning_rate, vectors, self.spec.stop_at)]

    def _start(self, tokenizer: "PreTrainedTokenizerBase", vocabulary: Tensor, generator: torch.Generator) -> Tensor:
        """float32 [vectors, width]: words, repeated until there are enough, or random ones."""
        count, ids = self.spec.vectors, token_ids(self.spec.initial_text, tokenizer)
        if ids:
            return vocabulary[[ids[number % len(ids)] for number in range(count)]].detach().float()
        ordinary = _ordinary(tokenizer, vocabulary)
        return ordinary.mean(dim=0) + ordinary.std(dim=0) * torch.randn(count, ordinary.shape[1], generator=generator)

    def _lengths(self, tokenizer: "PreTrainedTokenizerBase", vocabulary: Tensor) -> tuple[float, float]:
        """The shortest and the longest that vectors may be."""
        if self.spec.norm == "free":
            return 0.0, float("inf")
        lengths = _ordinary(tokenizer, vocabulary).norm(dim=1)
        mean = float(lengths.mean())
        return (0.0, float(lengths.max())) if self.spec.norm == "limited" else (mean, mean)

    def regularizer(self) -> Tensor | None:
        if not self.spec.cosine_weight:
            return None
        similarity = torch.cat([words.similarity() for words in self.words.values()])
        return self.spec.cosine_weight * (1 - similarity).mean()

    def after_step(self, step: int):
        for words in self.words.values():
            words.hold_lengths()

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> Saved:
        path, keys = folder / f"{name}.safetensors", parts.family.embedding_keys
        tensors = {keys[encoder]: words.vectors.detach() for encoder, words in self.words.items()}
        metadata = embedding_metadata(metadata, parts.family.metadata, self.token, self.spec.vectors)
        save_embedding(path, tensors, self.spec.file_precision, metadata)
        moved = torch.cat([(words.vectors.detach() - words.start).flatten() for words in self.words.values()])
        return Saved(files=(SavedFile.at("embedding", path),), change_norm=float(moved.norm()), token=self.token,
                     vectors=self.spec.vectors)


def _ordinary(tokenizer: "PreTrainedTokenizerBase", vocabulary: Tensor) -> Tensor:
    """The vocabulary without start, end and padding marks, float32 [words, width]."""
    rows = torch.ones(len(vocabulary), dtype=torch.bool)
    rows[[number for number in tokenizer.all_special_ids if number < len(vocabulary)]] = False
    return vocabulary.detach()[rows].float()
