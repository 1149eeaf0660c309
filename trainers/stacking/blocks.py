"""Which block a weight belongs to and what kind it is, by its name in ComfyUI or in a LoRA file.

Blocks of UNets are counted as the original code and LoRA Block Weight (Automatic1111) do: IN00 …, MID, OUT00 …. SD3 has
JOINT00 …; Flux has DOUBLE00 … and SINGLE00 …. BASE is all text encoders, EXTRA is what stands outside the blocks (time and
size embeddings, first and last projections).
"""
import re
from functools import lru_cache
from typing import NamedTuple

ATTENTION, FEED_FORWARD, CONVOLUTION, OTHER = "attention", "feed_forward", "convolution", "other"
BASE, MID, EXTRA = "BASE", "MID", "EXTRA"


class Place(NamedTuple):
    """`block` is one of `BLOCKS`, `kind` is "attention", "feed_forward", "convolution" or "other"."""

    block: str
    kind: str


def numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{number:02}" for number in range(count))


def _unet(depth: int) -> tuple[str, ...]:
    return (BASE, *numbered("IN", depth), MID, *numbered("OUT", depth), EXTRA)


BLOCKS = {
    "sd1": _unet(12), "sd2": _unet(12), "sdxl": _unet(9),
    "sd3": (BASE, *numbered("JOINT", 38), EXTRA),
    "flux": (BASE, *numbered("DOUBLE", 19), *numbered("SINGLE", 38), EXTRA),
}
"""All blocks of a family in the order of the data flow; SD3 medium has 24 of the 38 that SD3.5 large has."""
TITLES = {
    "sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3", "flux": "Flux",
}

_TEXT = re.compile(r"(lora_)?(prior_)?(te\d?_|text_encoders?_|clip_[lgh]_|t5xxl_)|(base_model_model_)?text_model_")
_ORIGINAL = re.compile(r"(input|output)_blocks_(\d+)_")
_DIFFUSERS = re.compile(r"(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_")
_NUMBERED = (
    (re.compile(r"joint_blocks_(\d+)_"), "JOINT"), (re.compile(r"double_blocks_(\d+)_"), "DOUBLE"),
    (re.compile(r"single_(?:transformer_)?blocks_(\d+)_"), "SINGLE"),
)
_TRANSFORMER = re.compile(r"(?<!single_)transformer_blocks_(\d+)_")
_KINDS = (
    (re.compile(r"resnets_|(in|out)_layers_|emb_layers_|skip_connection|(down|up)samplers_|conv|blocks_\d+_\d_op$"
                r"|input_blocks_0_0$|^(diffusion_model|lora_unet)_out_2$"), CONVOLUTION),
    (re.compile(r"(^|_)ff(_context)?_|mlp|densereludense"), FEED_FORWARD),
    (re.compile(r"attn|attention|proj_(in|out)$|layer_0_"), ATTENTION),
)


def underscored(name: str) -> str:
    """A weight's or layer's name with every dot as an underscore, as kohya writes it, without ".weight" or ".bias"."""
    return name.removesuffix(".weight").removesuffix(".bias").replace(".", "_")


def is_text(name: str) -> bool:
    """Whether a layer of a LoRA file or a native weight belongs to a text encoder."""
    return _TEXT.match(underscored(name)) is not None


def in_denoiser(weight: str) -> bool:
    """Whether a weight, by its native name, belongs to the denoiser. Text encoders begin with names of their own."""
    return weight.startswith("diffusion_model.")


@lru_cache(maxsize=1 << 16)
def place(name: str, family: str = "", layers: int = 2) -> Place:
    """Block and kind of a weight, by its native name ("diffusion_model.input_blocks.4.1.….weight") or by a layer's name in
    a LoRA file ("lora_unet_down_blocks_1_attentions_0_…").

    `layers` is the number of ResNets per level, by which diffusers' names are counted: 2 in all full-size models.
    `family` tells diffusers' SD3 and Flux names apart, which begin alike.
    """
    flat = underscored(name)
    return Place(BASE if is_text(name) else _block(flat, family, layers), _kind(flat))


def _kind(flat: str) -> str:
    return next((kind for pattern, kind in _KINDS if pattern.search(flat.lower())), OTHER)


def _block(flat: str, family: str, layers: int) -> str:
    flat += "_"
    if match := _ORIGINAL.search(flat):
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"
    if match := _DIFFUSERS.search(flat):
        side, level, part, index = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            return f"IN{(layers + 1) * level + (layers + 1 if part == 'downsamplers' else 1 + index):02}"
        return f"OUT{(layers + 1) * level + (layers if part == 'upsamplers' else index):02}"
    if "middle_block_" in flat or "mid_block_" in flat:
        return MID
    if re.search(r"(^|_)conv_in_$", flat):
        return "IN00"
    for pattern, title in _NUMBERED:
        if match := pattern.search(flat):
            return f"{title}{int(match[1]):02}"
    if match := _TRANSFORMER.search(flat):
        return f"{'DOUBLE' if family == 'flux' else 'JOINT'}{int(match[1]):02}"
    return EXTRA
