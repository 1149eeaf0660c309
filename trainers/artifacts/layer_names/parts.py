"""Names of tensors in LoRA files of every maker: which layer they belong to, and which part of it they are.

Sources of the names: kohya's sd-scripts, LyCORIS, diffusers and peft, OneTrainer, SimpleTuner, ComfyUI's own SaveLoRA.
"""
import re
from functools import lru_cache
from typing import NamedTuple

DOWN, UP, MID, ALPHA, DORA = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale"
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
KEPT = (ALPHA, DORA, "diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight", "rescale", "oft_blocks",
        "a1.weight", "a2.weight", "b1.weight", "b2.weight", *LOHA, *LOKR)
"""Parts that ComfyUI's adapters read by these names."""
_FACTORS = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<kohya>down|up|mid)(?:\.weight)?"
    r"|\.lora_(?P<peft>A|B)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
    r"|[._]lora(?:_linear_layer)?\.(?P<old>down|up)(?:\.weight)?"
    r"|\.(?:lora_)?magnitude(?:_vector)?(?P<dora>)(?:\.[^.]+)*"
    r")"
)
"""Low-rank factors and DoRA's magnitudes as kohya, peft (with an adapter's name or without) and old diffusers write them."""
_ROLES = {"down": DOWN, "up": UP, "mid": MID, "A": DOWN, "B": UP}


class Part(NamedTuple):
    """A tensor of a file: the layer as the file calls it, and which part of it, by ComfyUI's name for that part."""

    layer: str
    part: str


def _pattern(kept: tuple[str, ...]) -> re.Pattern:
    """With or without an adapter's name behind it (peft). Old diffusers' layers end in `_lora`, their alphas' too."""
    return re.compile(rf"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?\.(?:(?P<part>{'|'.join(map(re.escape, kept))})"
                      rf"|(?P<named>{'|'.join((*LOHA, *LOKR))})\.(?!weight$)[^.]+)")


_kept, _kept_pattern = KEPT, _pattern(KEPT)


def keep(*parts: str):
    """From now on these are parts of layers too: those of another kind of adapter."""
    global _kept, _kept_pattern
    new = tuple(part for part in parts if part not in (*_kept, *_ROLES.values()))
    if new:
        _kept = (*_kept, *new)
        _kept_pattern = _pattern(_kept)
        split_key.cache_clear()


@lru_cache(maxsize=1 << 16)  # the files of a stack have the same keys
def split_key(key: str) -> Part | None:
    """Layer and part of a tensor's name; None for what no LoRA reader knows."""
    if match := _kept_pattern.fullmatch(key):
        return Part(match["layer"], match["part"] or match["named"])
    match = _FACTORS.fullmatch(key)
    if match is None:
        return None
    name = match["kohya"] or match["peft"] or match["old"]
    return Part(match["layer"], _ROLES[name] if name else DORA)
