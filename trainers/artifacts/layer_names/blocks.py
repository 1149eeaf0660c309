"""Which block a weight belongs to and what kind it is, by its name in ComfyUI or in a LoRA file.

Blocks of UNets are counted as the original code and LoRA Block Weight (Automatic1111) do: IN00 …, MID, OUT00 …. Families
of transformers bring theirs, such as JOINT00 …. BASE is all text encoders, EXTRA is what stands outside the blocks (time and
size embeddings, first and last projections).
"""
import re
from functools import lru_cache
from typing import NamedTuple

from .brought import BROUGHT
from .spelling import is_text, read_spelling, underscored
from .unet import original_unet_name

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


BLOCKS = {"sd1": _unet(12), "sd2": _unet(12), "sdxl": _unet(9)}
"""All blocks of a family in the order of the data flow, also of those that bring their names."""
DEEP = {"sd1": (5, 6), "sd2": (5, 6), "sdxl": (6, 2)}
"""Of UNets (first deep IN block, last deep OUT block): where LoRA Block Weight's presets divide shallow blocks from deep
ones."""
SMALLEST = "sd1"
"""The family that a UNet counts as of which nothing else is known: SD 1.x and 2.x have the same layers by name."""
LIKE_SMALLEST = ("sd2",)
_DIFFUSERS = re.compile(r"(down|up)_blocks_(\d{1,3})_(attentions|resnets|downsamplers|upsamplers)_(\d{1,3})_")
_ORIGINAL = re.compile(r"(input|output)_blocks_(\d+)_")
_KINDS = (
    (re.compile(r"resnets_|(in|out)_layers_|emb_layers_|skip_connection|(down|up)samplers_|conv|blocks_\d+_\d_op$"
                r"|input_blocks_0_0$|^out_2$"), CONVOLUTION),
    (re.compile(r"(^|_)ff(_context)?_|feed_forward|mlp|densereludense"), FEED_FORWARD),
    (re.compile(r"attn|attention|proj_(in|out)$|layer_0_"), ATTENTION),
)


@lru_cache(maxsize=1 << 16)
def place(name: str, family: str = "") -> Place:
    """Block and kind of a weight, by its native name ("diffusion_model.input_blocks.4.1.….weight") or by a layer's name in
    a LoRA file of any maker ("lora_unet_down_blocks_1_attentions_0_…").

    diffusers' names are counted by two ResNets per level, as all full-size models have. `family` tells names of transformers
    apart that begin alike.
    """
    if is_text(name):
        return Place(BASE, _kind(underscored(name)))
    core, own = read_spelling(name).core, BROUGHT.get(family)
    if own is None:
        return Place(_block(core), _kind(core))
    core = own.native(core)
    return Place(own.block(core), own.kind(core) or _kind(core))


def _kind(flat: str) -> str:
    return next((kind for pattern, kind in _KINDS if pattern.search(flat.lower())), OTHER)


def _block(core: str) -> str:
    flat = f"{core}_"
    if match := _DIFFUSERS.search(flat):
        side, level, part, layer = match.groups()
        flat = underscored(original_unet_name(f"{side}_blocks.{level}.{part}.{layer}.conv1", 2, (True,) * (int(level) + 1)))
    if match := _ORIGINAL.search(flat):
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02}"
    if "middle_block_" in flat or "mid_block_" in flat:
        return MID
    if re.search(r"(^|_)conv_in_$", flat):
        return "IN00"
    return next((block for each in BROUGHT.values() if (block := each.block(core)) != EXTRA), EXTRA)
