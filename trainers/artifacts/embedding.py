"""Files of learned words (Textual Inversion embeddings), as prompts call them by `embedding:name`.

What is written: for one text encoder a safetensors file with the single tensor `emb_params` [vectors, width], as kohya's
`train_textual_inversion.py` names it (readers that do not know the name take the first tensor, so there is no other); for
SDXL `clip_l` [vectors, 768] and `clip_g` [vectors, 1280]. What other trainers write is read under all names that
`embedding_words` knows, out of safetensors, A1111's and the original repository's `.pt`, and diffusers' `.bin`.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..files import write_tensors
from .embedding_words import MOST_VECTORS, SINGLE, WIDEST, Choice, choose, is_vectors
from .metadata import with_hashes
from .tensor_files import finite_entries, require_finite
from .tensor_header import read_header
from .torch_files import Refused, is_dense, last_records, load_plain

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FAMILIES = {
    frozenset({"clip_l", "clip_g"}): "Stable Diffusion XL",
    frozenset({"clip_l", "clip_g", "t5xxl"}): "Stable Diffusion 3",
    frozenset({"clip_g", "t5xxl"}): "Stable Diffusion 3",
    frozenset({"clip_l", "t5xxl"}): "Flux",
    frozenset({"clip_g"}): "the larger text encoder of Stable Diffusion XL alone",
    frozenset({"t5xxl"}): "the T5 text encoder of Flux and Stable Diffusion 3 alone",
}
FAMILY_OF_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
NO_VECTORS = ()
"""Stands for the shape of whole numbers and of tensors that are none: they cannot be the word, but they are named."""
SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class Embedding:
    """A learned word: float32 vectors [vectors, width] for each text encoder, by the names that ComfyUI looks for.

    `trigger` is the word of the training captions, `base` the model it was trained on; both are empty where the file does
    not tell. `metadata` is the header of the file. `notes` say what of the file is not used, and what ComfyUI reads of it
    where that is something else.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    trigger: str = ""
    base: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def vectors(self) -> int:
        """The places that it takes in a prompt."""
        return max(len(tensor) for tensor in self.tensors.values())

    @property
    def family(self) -> str:
        """Which models it is made for, by the encoders and widths of its tensors."""
        if known := FAMILIES.get(frozenset(self.tensors)):
            return known
        widths = sorted({tensor.shape[1] for tensor in self.tensors.values()})
        if len(widths) == 1:
            return FAMILY_OF_WIDTH.get(widths[0], f"a text encoder of width {widths[0]}")
        return f"text encoders of widths {', '.join(map(str, widths))}"


def save_embedding(path: Path, tensors: Mapping[str, Tensor], precision: str, metadata: Mapping[str, str]):
    """Write an embedding whole or not at all."""
    tensors = {name: tensor.detach().to("cpu", PRECISIONS[precision]).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"The learned vectors {name} hold values that are not numbers in {precision}. "
                            "Lower the learning rate, or save the file as fp32.")
    write_tensors(path, tensors, with_hashes(tensors, metadata))


def load_embedding(path: Path) -> Embedding:
    """Read an embedding in any of the known forms; nothing in the file is executed. Raises UserError with its name."""
    if path.suffix.lower() != ".safetensors":
        tensors, notes = _read_torch(path)
        return Embedding(tensors, notes=notes)
    metadata = read_header(path)[1]
    entries = _in_order(path)
    shapes = {name: entry.shape if entry.dtype.is_floating_point else NO_VECTORS for name, entry in entries.items()}
    choice = choose(shapes, path.name)
    tensors = _stacked(choice, lambda name: entries[name].tensor(), path.name)
    base = metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version", "")
    return Embedding(tensors, metadata.get("modelspec.trigger_phrase", ""), base, metadata, choice.notes)


def _in_order(path: Path) -> dict:
    """The tensors in the order of their bytes, in which the format's library hands them to ComfyUI."""
    header, entries = read_header(path)[0], finite_entries(path)
    return {name: entries[name] for name in sorted(entries, key=lambda name: header[name]["data_offsets"])}


def _read_torch(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors and plain containers. What torch does not read without running it gives its bytes, as in ComfyUI."""
    try:
        content = load_plain(path)
    except Refused as refusal:
        return _bare_numbers(path, refusal)
    content = content.get("string_to_param", content) if isinstance(content, dict) else content
    joined = isinstance(content, list)
    if joined:
        content = {f"{number}: {name}": value for number, part in enumerate(content) if isinstance(part, dict)
                   for name, value in part.items()}
    named = content.items() if isinstance(content, dict) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    dense = {name: value for name, value in tensors.items()
             if is_dense(value, (1, 2)) and value.is_floating_point()}
    shapes = {name: tuple(value.shape) if name in dense else NO_VECTORS for name, value in tensors.items()}
    choice = choose(shapes, path.name, joined)
    return _stacked(choice, dense.__getitem__, path.name), choice.notes


def _bare_numbers(path: Path, refusal: Refused) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The original textual_inversion repository saved objects of its own around the vectors. ComfyUI reads such archives
    without them (`safe_load_embed_zip`): the last part that can be a word, as float32 [vectors, 768 or 1024]."""
    try:
        parts = [data for data in last_records(path, 4 * MOST_VECTORS * WIDEST) if len(data) >= 4 * 768]
    except Refused:
        raise refusal from None
    numbers = [len(data) // 4 for data in parts]
    width = 768 if numbers and numbers[0] % 768 == 0 else 1024
    if not numbers or len(parts[0]) % (4 * width) or not is_vectors((numbers[0] // width, width)):
        raise refusal
    tensor = torch.frombuffer(bytearray(parts[0]), dtype=torch.float32).reshape(-1, width)
    several = f"it holds {len(parts)} words, of which the last is read, as in ComfyUI"
    return {SINGLE: require_finite(tensor, "the word", path.name)}, (several,) if len(parts) > 1 else ()


def _stacked(choice: Choice, read: Callable[[str], Tensor], title: str) -> dict[str, Tensor]:
    """float32 [vectors, width] for each encoder, in memory of their own."""
    def rows(name: str) -> Tensor:
        tensor = require_finite(read(name).detach(), name, title).to(torch.float32, copy=True)
        return tensor.reshape(-1, tensor.shape[-1])
    return {encoder: torch.cat([rows(name) for name in names]) for encoder, names in choice.tensors.items()}


def merge(embeddings: Sequence[Embedding], weights: Sequence[float], names: Sequence[str]) -> dict[str, Tensor]:
    """The weighted average of embeddings of one shape: Σ wᵢ vᵢ / Σ wᵢ for every vector.

    Raises UserError when they are for different text encoders, have different numbers of vectors, or the weights sum to 0.
    """
    shapes = [{key: tuple(tensor.shape) for key, tensor in each.tensors.items()} for each in embeddings]
    for each, shape, name in zip(embeddings, shapes, names):
        if {key: size[1] for key, size in shape.items()} != {key: size[1] for key, size in shapes[0].items()}:
            raise UserError(f"{names[0]!r} is for {embeddings[0].family} and {name!r} for {each.family}. Only embeddings "
                            "for the same text encoders can be merged.")
        if shape != shapes[0]:
            raise UserError(f"{names[0]!r} has {embeddings[0].vectors} vectors and {name!r} has {each.vectors}. Only "
                            "embeddings with equally many vectors can be averaged, because each vector has a meaning of "
                            "its own at its place. Use both words in the prompt instead, or train them alike.")
    total = sum(weights)
    if abs(total) < 1e-6:
        raise UserError("The weights sum to 0, so there is no average. Raise at least one of them.")
    return {
        key: sum((weight / total * each.tensors[key] for each, weight in zip(embeddings, weights)), torch.zeros(()))
        for key in shapes[0]
    }
