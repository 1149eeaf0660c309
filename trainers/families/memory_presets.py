"""Settings of memory with which a LoRA of a base fits into a GPU."""
from collections.abc import Sequence
from math import ceil, prod
from typing import Any

from ..spec import BaseModelSpec, MemorySpec
from . import get
from .model_parts import ModelParts

SIZES = 24, 16, 12, 8
"""GB of a GPU's memory."""
RESERVE = 5.0
"""GB beside the weights, for images of about a megapixel one at a time: activations with gradient checkpointing, adapters,
their optimizer, what CUDA itself takes. With it kohya's table for FLUX.1 comes out (sd-scripts, docs/flux_train_network.md):
its 12 GB of weights in 8 bits stay whole on 24 GB, give up 5 GB (16 of kohya's blocks) on 12 GB and 9 GB (28) on 8 GB."""
LIGHT = 1 / 8
"""Where weights in 16 bits take no more of the memory, activations may stay."""
TEXT_RESERVE = 0.5
"""GB beside the weights of a text encoder, which has the GPU to itself. With it T5 is in 8 bits below 10 GB, as kohya
advises."""
IN_ROOM = 2
"""Swapped blocks that are on the GPU at any time."""
DENOISERS = "transformer", "unet", "denoiser"
SOURCE = "kohya's table for FLUX.1 and its 12 billion weights, in proportion for others"


def fitting_memory(base: BaseModelSpec, gigabytes: int) -> MemorySpec:
    """What a base needs on a GPU of so many GB. Reads headers only."""
    family, parts = get(base.family), ModelParts.of(base)
    name = next(each for each in DENOISERS if each in parts)
    weights = sum(prod(entry.shape) for entry in parts[name].entries().values())
    blocks = [each for each in family.block_names(base) if each != "other"]
    return fitted(weights / 1e9, len(blocks), gigabytes, family.large_text_weights(base) / 1e9, "fp8" in base.storage)


def fitted(billions: float, blocks: int, gigabytes: int, text_billions: float = 0.0,
           in_fp8: bool = False) -> MemorySpec:
    """The same for so many weights in so many blocks of about one size. A file that is in fp8 stays so."""
    room, eight_bit = gigabytes - RESERVE, "fp8" if in_fp8 else "int8"
    settings: dict[str, Any] = {"gradient_checkpointing": 2 * billions > LIGHT * gigabytes}
    if 2 * billions > room:
        settings["frozen_precision"] = eight_bit
    if billions > room:
        settings["swapped_blocks"] = min(blocks, ceil((billions - room) / (billions / blocks)) + IN_ROOM)
    if 2 * text_billions + TEXT_RESERVE > gigabytes:
        settings["text_precision"] = eight_bit
    return MemorySpec.model_validate(settings)


def in_words(memory: MemorySpec) -> Sequence[str]:
    """What differs from the defaults."""
    named = {
        "gradient_checkpointing": "gradient checkpointing", "frozen_precision": f"denoiser in {memory.frozen_precision}",
        "swapped_blocks": f"{memory.swapped_blocks} blocks swapped",
        "text_precision": f"text encoder in {memory.text_precision}"}
    return [words for field, words in named.items() if getattr(memory, field) != MemorySpec.model_fields[field].default]
