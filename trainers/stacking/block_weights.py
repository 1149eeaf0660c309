"""Strengths per block, from the texts that people paste into each other's prompts.

Read are: the name of a preset; the comma lists of LoRA Block Weight (Automatic1111) and of ComfyUI's Inspire pack, whose
length says which blocks they name; and assignments such as `IN04=0.5`, `in1-3=0.5`, `OUT=0`, `%default=0.3`. A preset may be
followed by assignments.
"""
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..artifacts.layer_names import BROUGHT
from ..artifacts.layer_names.blocks import BASE, BLOCKS, DEEP, EXTRA, MID, SMALLEST
from ..errors import UserError

LIMIT = 100.0
"""The host's own limit for strengths."""


def _names(*pairs: tuple[str, Iterable[int]]) -> tuple[str, ...]:
    return tuple(name if name in (BASE, MID) else f"{name}{number:02}" for name, numbers in pairs for number in numbers)


LISTS = {
    12: _names((BASE, [0]), ("IN", [4, 5, 7, 8]), (MID, [0]), ("OUT", range(6))),
    17: _names((BASE, [0]), ("IN", [1, 2, 4, 5, 7, 8]), (MID, [0]), ("OUT", range(3, 12))),
    20: _names((BASE, [0]), ("IN", range(9)), (MID, [0]), ("OUT", range(9))),
    26: _names((BASE, [0]), ("IN", range(12)), (MID, [0]), ("OUT", range(12))),
}
"""Length of a list for UNets → the blocks it names. 12 and 20 are SDXL's, 17 and 26 SD 1.x's; the shorter ones name the
blocks with attention only."""


def _is_in(block: str, low: int, high: int) -> bool:
    return block.startswith("IN") and low <= int(block[2:]) <= high


def _is_out(block: str, low: int, high: int) -> bool:
    return block.startswith("OUT") and low <= int(block[3:]) <= high


PRESETS = {
    "ALL": lambda block, deep_in, deep_out: 1.0,
    "ALL0.5": lambda block, deep_in, deep_out: 0.5,
    "NONE": lambda block, deep_in, deep_out: 0.0,
    "DENOISER": lambda block, deep_in, deep_out: float(block != BASE),
    "TEXT": lambda block, deep_in, deep_out: float(block == BASE),
    "INALL": lambda block, deep_in, deep_out: float(block == BASE or _is_in(block, 0, 99)),
    "INS": lambda block, deep_in, deep_out: float(block == BASE or _is_in(block, 0, deep_in - 1)),
    "IND": lambda block, deep_in, deep_out: float(block == BASE or _is_in(block, deep_in, 99)),
    "MIDD": lambda block, deep_in, deep_out: float(
        block in (BASE, MID) or _is_in(block, deep_in, 99) or _is_out(block, 0, deep_out)),
    "OUTD": lambda block, deep_in, deep_out: float(block == BASE or _is_out(block, 0, deep_out)),
    "OUTS": lambda block, deep_in, deep_out: float(block == BASE or _is_out(block, deep_out + 1, 99)),
    "OUTALL": lambda block, deep_in, deep_out: float(block == BASE or _is_out(block, 0, 99)),
}
"""LoRA Block Weight's names and meanings (S is shallow, D is deep); DENOISER and TEXT are ours. Unlike the 17 and 12 numbers
of the originals they also reach the blocks that hold convolutions only, so that two halves add up to the whole."""
ANY_FAMILY = ("ALL", "ALL0.5", "NONE", "DENOISER", "TEXT")

_RANGE = re.compile(r"([a-z]+?)(\d+)?(?:-[a-z]*(\d+))?")


@dataclass(frozen=True)
class BlockWeights:
    """A factor per block; blocks without a name have `default`."""

    named: Mapping[str, float] = field(default_factory=dict)
    default: float = 1.0

    def __getitem__(self, block: str) -> float:
        return self.named.get(block, self.default)


def _lists(family: str) -> dict[int, tuple[str, ...]]:
    """Length of a list → the blocks it names. Those of a family that brings its names come before all of that length."""
    brought = {len(blocks): blocks for each in BROUGHT.values() for blocks in each.lists}
    own = {len(blocks): blocks for blocks in BROUGHT[family].lists} if family in BROUGHT else {}
    return {**brought, **LISTS, **own}


def _titles(family: str) -> dict[str, str]:
    """What people may write of blocks that have numbers → what they are called: "joint", or "j", which is the family's own
    where several families have one."""
    brought = [block for each in BROUGHT.values() for block in each.blocks]
    own = BROUGHT[family].blocks if family in BROUGHT else ()
    titles = [block.rstrip("0123456789") for block in (*brought, *own) if block not in (BASE, EXTRA)]
    return {"in": "IN", "out": "OUT"} | {name: title for title in titles for name in (title[0].lower(), title.lower())}


def _kinds_of_blocks() -> str:
    """For a sentence."""
    first = {family: [block for block in each.blocks if block.endswith("00")] for family, each in BROUGHT.items()}
    return "; ".join(["BASE, IN00 …, MID, OUT00 …, EXTRA", *(
        f"of {BROUGHT[family].title} {' and '.join(f'{block} …' for block in blocks)}" for family, blocks in first.items())])


def presets_for(family: str) -> tuple[str, ...]:
    """Names of the presets that a family's blocks have a meaning for."""
    return tuple(PRESETS) if family in DEEP else ANY_FAMILY


def parse_block_weights(text: str, family: str = SMALLEST) -> BlockWeights:
    """Read a text for a model of `family`, one of `BLOCKS`, or "" for others; empty is 1 everywhere.

    As in LoRA Block Weight a list leaves the blocks that it does not name at 0. What lies outside all blocks follows the
    list's mean, so that a list of one value throughout is that strength. Raises UserError.
    """
    items = [item for item in re.split(r"[,;\n]", text.strip()) if item.strip()]
    if not items:
        return BlockWeights()
    named, default = {}, 1.0
    if all(_is_number(item) for item in items):
        return _from_list([_number(item, text) for item in items], family)
    if "=" not in items[0]:
        named, default = _from_preset(items.pop(0).strip(), family)
    for item in items:
        for assignment in re.sub(r"\s*=\s*", "=", item).split():
            name, equals, value = assignment.strip().lower().removeprefix("%").partition("=")
            if not equals:
                raise UserError(f"The block weights {shown(text)} hold {shown(assignment)}, which is neither a number nor "
                                "an assignment such as IN04=0.5.")
            weight = _number(value, text)
            if name == "default":
                default = weight
            else:
                named |= dict.fromkeys(_blocks_of(name, family, text), weight)
    return BlockWeights(named, default)


def _from_list(values: list[float], family: str) -> BlockWeights:
    if len(values) == 1:
        return BlockWeights({}, values[0])
    blocks = _lists(family).get(len(values))
    if blocks is None:
        others = "".join(f", {' or '.join(str(len(names)) for names in reversed(each.lists))} ({each.title})"
                         for each in BROUGHT.values())
        raise UserError(f"The block weights are a list of {len(values)} numbers. Lists have 17 or 26 (SD 1.x and 2.x), 12 "
                        f"or 20 (SDXL){others} numbers, beginning with the text encoder's.")
    mean = math.fsum(values[1:]) / (len(values) - 1)
    return BlockWeights({**dict(zip(blocks, values)), EXTRA: mean}, 0.0)


def _from_preset(name: str, family: str) -> tuple[dict[str, float], float]:
    """(factor per block of the family, factor of all others)"""
    preset = PRESETS.get(name.upper())
    if preset is None:
        raise UserError(f"There is no preset {shown(name)} of block weights. Presets are {', '.join(PRESETS)}.")
    if name.upper() not in presets_for(family):
        raise UserError(f"The preset {name} is made for UNets, but the model is no UNet. Use {', '.join(ANY_FAMILY)}, "
                        "or name blocks, for example DOUBLE0-9=0.5.")
    deep_in, deep_out = DEEP.get(family, (0, 0))
    blocks = BLOCKS.get(family, (BASE,))
    return {block: preset(block, deep_in, deep_out) for block in blocks}, preset("", deep_in, deep_out)


def _blocks_of(name: str, family: str, text: str) -> list[str]:
    """The blocks that "in1-3", "IN04", "out", "mid", "base" or "extra" name."""
    if name in ("base", "text", "te"):
        return [BASE]
    if name in ("mid", "m00", "m0"):
        return [MID]
    if name == "extra":
        return [EXTRA]
    match = _RANGE.fullmatch(name)
    title = _titles(family).get(match[1]) if match else None
    if match is None or title is None:
        raise UserError(f"The block weights {shown(text)} name a block {shown(name)}. Blocks are {_kinds_of_blocks()}.")
    first = int(match[2]) if match[2] else 0
    last = int(match[3]) if match[3] else first if match[2] else 99
    if last < first or last > 99:
        raise UserError(f"The block weights {shown(text)} hold the range {shown(name)}, which ends before it begins or "
                        "leaves the model. Write for example in1-3=0.5.")
    return list(_names((title, range(first, last + 1))))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(value: str, text: str) -> float:
    if not _is_number(value) or not math.isfinite(float(value)) or abs(float(value)) > LIMIT:
        raise UserError(f"The block weights {shown(text)} hold {shown(value)} where a number from -{LIMIT:g} to {LIMIT:g} "
                        "belongs.")
    return float(value)


def shown(text: str, length: int = 60) -> str:
    """A person's text inside a sentence: quoted and not endless."""
    return repr(text if len(text) <= length else text[:length] + "…")
