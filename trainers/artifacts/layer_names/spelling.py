"""Any trainer's spelling of a layer, taken apart: which part of the model it names, and the layer's own path.

ComfyUI matches whole names, so that files which mean the same layer with another spelling stay unloaded there. Here dots
and underscores are the same, prefixes of programs are taken off, and the attention processors of old diffusers are undone.
"""
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

UNET, BARE_TEXT = "unet", "text"
"""Parts of a model: the denoiser; a text encoder whose number a name does not say. Others are "te1", "te2", and "te3" for
T5, which programs number as they like, and whose modules have names of their own."""

_DENOISER = re.compile(
    r"(?:(?:base_model_)?model_|lora_unet_|lora_transformer_|lora_prior_unet_|lycoris_|unet_|transformer_(?!blocks_)"
    r"|diffusion_model_)*")
_TEXT_MODULE = re.compile(r"(?:^|_)(encoder_(?:layers|block)_\d+_.+|text_projection)$")
_T5 = "encoder_block_"
_TEXT_PREFIX = re.compile(
    r"(?:base_model_model_|lycoris_|lora_|prior_|cond_stage_model_|conditioner_embedders_(?P<place>\d)_"
    r"|te(?P<short>\d?)_|text_encoders?_(?:(?P<long>\d)_)?|clip_(?P<letter>[lgh])_|t5(?:xxl)?_|transformer_|model_|text_model_)*")
_ANY_TEXT = re.compile(
    r"(lora_|lycoris_)?(prior_)?(te\d?_|text_encoders?_|clip_[lgh]_|t5(xxl)?_|cond_stage_model_|conditioner_)"
    r"|((base_model_model|lycoris)_)?(text_model_|encoder_(layers|block)_\d+_|text_projection$)")


class Spelled(NamedTuple):
    """`part` is `UNET`, `BARE_TEXT`, "te1", "te2" or "te3"; `core` is the path within it, underscored."""

    part: str
    core: str


def underscored(name: str) -> str:
    """A weight's or layer's name with every dot as an underscore, as kohya writes it, without ".weight" or ".bias"."""
    return name.removesuffix(".weight").removesuffix(".bias").replace(".", "_")


def is_text(name: str) -> bool:
    """Whether a layer of a LoRA file or a native weight belongs to a text encoder."""
    return _ANY_TEXT.match(underscored(name)) is not None


def in_denoiser(weight: str) -> bool:
    """Whether a weight, by its native name, belongs to the denoiser. Text encoders begin with names of their own."""
    return weight.startswith("diffusion_model.")


@lru_cache(maxsize=1 << 16)  # the files of a stack have the same layers
def read_spelling(layer: str) -> Spelled:
    """What a layer's name in a LoRA file says, whoever wrote it."""
    flat = underscored(layer)
    module = _TEXT_MODULE.search(flat)
    if module:
        prefix = _TEXT_PREFIX.fullmatch(flat[:module.start() + (flat[module.start()] == "_")])
        if prefix and module[1].startswith(_T5):
            return Spelled("te3", module[1].removesuffix("_lora"))
        if prefix:
            return Spelled(_encoder(**prefix.groupdict()), _text_core(module[1]))
    core = _DENOISER.sub("", flat, count=1).replace("_processor_", "_").removesuffix("_lora")
    return Spelled(UNET, f"{core}_0" if core.endswith("_to_out") else core)


def _encoder(place: str | None, short: str | None, long: str | None, letter: str | None) -> str:
    if place is not None:
        return f"te{int(place) + 1}"
    number = short or long or {"g": "2"}.get(letter or "", "")
    return f"te{number}" if number else BARE_TEXT


def _text_core(module: str) -> str:
    """Old diffusers trained text encoders' attentions under the names of the UNet's."""
    core = module.removesuffix("_lora")
    core = re.sub(r"self_attn_to_([qkv])$", r"self_attn_\1_proj", core)
    return re.sub(r"self_attn_to_out(_0)?$", "self_attn_out_proj", core)


# ---- families without a table --------------------------------------------------------------------------------------

def other_spellings(layer: str) -> Iterator[str]:
    """Ways in which ComfyUI may know a layer of a family that has no table here, underscored, the likeliest first."""
    flat = underscored(layer)
    yield flat
    part, core = read_spelling(layer)
    if part == UNET:
        for prefix in ("lora_unet_", "diffusion_model_", "lora_transformer_", "transformer_", ""):
            yield prefix + core
            if core.endswith("_to_out_0"):
                yield prefix + core.removesuffix("_0")
        return
    # The first encoder has no number in files for models with one encoder; ComfyUI knows both names then.
    for name in (core if core.startswith("text_model_") else f"text_model_{core}", core):
        for number in ("1", "") if part in (BARE_TEXT, "te1") else (part[2:],):
            yield f"lora_te{number}_{name}"
