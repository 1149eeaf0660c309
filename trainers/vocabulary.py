"""Facts about words as a CLIP tokenizer takes them: how many tokens, and whether the base has long known them.

`tokenizer` is a CLIPTokenizer. Its ids are in the order in which byte pair encoding merged its tokens, the most frequent
first: OpenAI's vocabulary has "dog" as 1929, "square" as 3999, "ohwx" as 47993, "sks" as 48136, each one token.
"""
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase"
COMMON_BELOW = 10_000
"""Whole words with smaller ids are everyday words."""
RARE = "ohwx"
"""The word that the pack recommends; one token of the vocabulary, and next to never in captions."""


def token_ids(word: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer(word, add_special_tokens=False).input_ids if word.strip() else []


def is_common(word: str, tokenizer: Tokenizer) -> bool:
    """Whether it is one token, and one of the everyday words."""
    ids = token_ids(word, tokenizer)
    return len(ids) == 1 and ids[0] < COMMON_BELOW


def tokens_of_rare(tokenizer: Tokenizer) -> str:
    """How many tokens the recommended word has, as a word: vocabularies that were cut down may lack it."""
    count = len(token_ids(RARE, tokenizer))
    return {1: "one", 2: "two", 3: "three"}.get(count, str(count))
