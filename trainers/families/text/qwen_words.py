"""The vocabulary of Qwen's language models."""
from functools import cache
from typing import TYPE_CHECKING

from ..component_configs import CONFIGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER = CONFIGS / "qwen_tokenizer"
"""The same for Qwen 2 to 3 of every size: 151643 pieces of words and the signs of chats."""
PADDING = 151643
"""The token "<|endoftext|>"."""


@cache
def qwen_tokenizer() -> "PreTrainedTokenizerBase":
    """Without any base model; a caption is what it is, without tokens around it. The class is ComfyUI's. It takes a
    second to load, and nobody adds words to it: there is one for all."""
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer.from_pretrained(TOKENIZER, local_files_only=True)
