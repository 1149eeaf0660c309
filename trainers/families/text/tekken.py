"""The vocabulary of Mistral's language models, out of the file of the model or out of its folder."""
import base64
import binascii
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UserError
from ...spec import BaseModelSpec
from ..component_loading import explained
from ..model_parts import ModelPart, ModelParts
from .clip import require_ordinary

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

NAME = "tekken_model"
"""Tensor of bytes that holds Mistral's file tekken.json, as ComfyUI keeps it beside the weights."""
LONGEST = 50_000_000
"""Bytes; that of Mistral Small 3 has 20 million."""
WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
"""How ComfyUI cuts a text before its words become pieces."""


def tekken_tokenizer(base: BaseModelSpec, component: str) -> "PreTrainedTokenizerBase":
    """Raises UserError where a model comes without its words."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    parts = ModelParts.of(base)
    beside = component.replace("text_encoder", "tokenizer")
    with explained("tokenizer", base):
        if beside in parts:
            require_ordinary(parts[beside].path, base.name)
            made = Tokenizer.from_file(str(parts[beside].path / "tokenizer.json"))
        else:
            made = _made_of(_content(parts[component]))
    return PreTrainedTokenizerFast(tokenizer_object=made)


def _content(part: ModelPart) -> dict:
    entry = {} if part.is_folder else part.entries()
    if NAME not in entry or entry[NAME].bytes > LONGEST:
        raise UserError(f"{Path(part.path).name!r} lacks the words of its language model (the tensor {NAME}). Take the file "
                        "that ComfyUI's documentation names: mistral_3_small_flux2_bf16.safetensors or "
                        "mistral_3_small_flux2_fp8.safetensors.")
    return json.loads(bytes(entry[NAME].tensor().tolist()))


def _made_of(content: dict) -> "Tokenizer":
    """Pieces of bytes have the number of their rank behind the marks; the lower the rank, the sooner two become one."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    first = int(content["config"]["default_num_special_tokens"])
    ranks = {base64.b64decode(word["token_bytes"]): int(word["rank"]) for word in content["vocab"]
             if int(word["rank"]) < int(content["config"]["default_vocab_size"]) - first}
    letters = _letters()

    def spelled(piece: bytes) -> str:
        return "".join(letters[byte] for byte in piece)

    marks = {_mark(each): int(each["rank"]) for each in content["special_tokens"]}
    merges = [(spelled(left), spelled(right)) for piece, _ in sorted(ranks.items(), key=lambda each: each[1])
              for left, right in _halves(piece, ranks)]
    words = {spelled(piece): rank + first for piece, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=marks | words, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([  # pyright: ignore[reportAttributeAccessIssue]  # a settable property
        pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def _halves(piece: bytes, ranks: dict[bytes, int]) -> Sequence[tuple[bytes, bytes]]:
    """Two pieces that are this one together, those of the lowest ranks first."""
    found = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece)) if piece[:cut] in ranks and piece[cut:] in ranks]
    return sorted(found, key=lambda both: (ranks[both[0]], ranks[both[1]]))


def _mark(each: dict) -> str:
    if each.get("token_str"):
        return each["token_str"]
    try:
        return base64.b64decode(each["token_bytes"]).decode("utf-8", errors="replace")
    except (KeyError, binascii.Error) as problem:
        raise ValueError("a special token has no name") from problem


def _letters() -> dict[int, str]:
    """The letter by which byte-level vocabularies write each byte: its own where it is seen, else one behind Latin-1."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    unseen = count(256)
    return {byte: chr(byte) if byte in seen else chr(next(unseen)) for byte in range(256)}
