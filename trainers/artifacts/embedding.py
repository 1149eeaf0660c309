"""Files of learnt words (Textual Inversion embeddings), as prompts call them by `embedding:name`.

What is written: for one text encoder a safetensors file with the single tensor `emb_params` [vectors, width], as kohya's
`train_textual_inversion.py` names it (readers that do not know the name take the first tensor, so there is no other); for
SDXL `clip_l` [vectors, 768] and `clip_g` [vectors, 1280]. What is read besides: A1111's `.pt` (`string_to_param`),
diffusers' `.bin` (word → vectors), and other safetensors with one tensor.
"""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError, reason_of
from ..files import write_tensors
from .metadata import with_hashes
from .tensor_files import read_entries
from .tensor_header import read_header

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SINGLE = "emb_params"
ENCODER_KEYS = ("clip_l", "clip_g", "t5xxl")
FAMILY_OF_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class Embedding:
    """A learnt word: float32 vectors [vectors, width] for each text encoder, by their names in the file.

    `trigger` is the word of the training captions, `base` the model it was trained on; both are empty where the file does
    not tell. `metadata` is the header of the file.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    trigger: str = ""
    base: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def vectors(self) -> int:
        """The places that it takes in a prompt."""
        return max(len(tensor) for tensor in self.tensors.values())

    @property
    def family(self) -> str:
        """Which models it is made for, by the names and widths of its tensors."""
        if "clip_g" in self.tensors:
            return "Stable Diffusion XL" if "t5xxl" not in self.tensors else "Stable Diffusion 3"
        width = next(iter(self.tensors.values())).shape[1]
        return FAMILY_OF_WIDTH.get(width, f"a text encoder of width {width}")


def save_embedding(path: Path, tensors: Mapping[str, Tensor], precision: str, metadata: Mapping[str, str]) -> dict:
    """Write an embedding whole or not at all. Returns {"bytes", "vectors"} for the report."""
    tensors = {name: tensor.detach().to("cpu", PRECISIONS[precision]).contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"The learnt vectors {name} hold values that are not numbers in {precision}. "
                            "Lower the learning rate, or save the file as fp32.")
    write_tensors(path, tensors, with_hashes(tensors, metadata))
    return {"bytes": path.stat().st_size, "vectors": max(len(tensor) for tensor in tensors.values())}


def load_embedding(path: Path) -> Embedding:
    """Read an embedding in any of the known forms; nothing in the file is executed. Raises UserError with its name."""
    if path.suffix.lower() == ".safetensors":
        content, metadata = _read_safetensors(path)
    else:
        content, metadata = _read_torch(path), {}
    tensors = _vectors(content, path.name)
    base = metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version", "")
    return Embedding(tensors, metadata.get("modelspec.trigger_phrase", ""), base, metadata)


def _read_safetensors(path: Path) -> tuple[dict, dict]:
    return {name: entry.tensor() for name, entry in read_entries(path).items()}, read_header(path)[1]


def _read_torch(path: Path):
    """Tensors and plain containers; a file with anything else in it is refused rather than unpickled."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # a damaged archive raises one of many types
        raise UserError(f"The embedding {path.name!r} cannot be read safely: {reason_of(problem, 200)} "
                        "Use a .safetensors version of it.") from None
    content = content.get("string_to_param", content) if isinstance(content, dict) else content
    return dict(content) if isinstance(content, Mapping) else {}


def _vectors(content: Mapping, name: str) -> dict[str, Tensor]:
    """The tensors that are vectors, as float32 [vectors, width]."""
    content = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    named = {key: content[key] for key in ENCODER_KEYS if key in content}
    chosen = named or {SINGLE: value for value in [next(iter(content.values()), None)] if value is not None}
    chosen = {key: value.float()[None] if value.ndim == 1 else value.float() for key, value in chosen.items()}
    if not chosen or any(value.ndim != 2 or not 1 <= len(value) <= 75 for value in chosen.values()):
        raise UserError(f"{name!r} is no embedding: it holds no vectors for 1 to 75 places of a prompt. Choose a file that "
                        "was made by Textual Inversion.")
    return chosen


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
        key: sum(weight / total * each.tensors[key] for each, weight in zip(embeddings, weights)) for key in shapes[0]
    }
