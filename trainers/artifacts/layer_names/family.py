"""Which family of models a checkpoint or a LoRA file is of, by names, shapes and metadata of its header."""
import re
from collections.abc import Iterable, Mapping

from ...errors import UserError
from .brought import BROUGHT, FamilyNames
from .parts import DOWN, split_key
from .spelling import is_text, read_spelling, underscored

TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL"}
"""What people call a family, also those that bring their names."""
CONTEXT_WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the text states that cross-attention reads → family."""
_BASE_VERSIONS = (
    ("sdxl", "sdxl"), ("stable-diffusion-xl", "sdxl"), ("sd_v2", "sd2"), ("sd_2", "sd2"), ("stable-diffusion-v2", "sd2"),
    ("sd_v1", "sd1"), ("sd_1", "sd1"), ("sd-v1", "sd1"), ("stable-diffusion-v1", "sd1"), ("illustrious", "sdxl"),
    ("pony", "sdxl"), ("noob", "sdxl"),
)
_UNET = "model.diffusion_model."
_TRANSFORMERS = ("joint_blocks.", "double_blocks.", "single_blocks.", "transformer_blocks.", "single_transformer_blocks.",
                 "layers.")
_ONLY_SDXL = re.compile(r"^(down|up)_blocks_\d_attentions_\d_transformer_blocks_[1-9]_|^(add_embedding|label_emb)_"
                        r"|^(input|output)_blocks_\d+_1_transformer_blocks_[1-9]_|^mid\w+_transformer_blocks_[1-9]_")
_NEVER_SDXL = re.compile(r"^down_blocks_0_attentions_|^(down|up)_blocks_3_|^up_blocks_2_(attentions|upsamplers)_"
                         r"|^input_blocks_[12]_1_|^(input|output)_blocks_(9|1\d)_|^output_blocks_[678]_1_")
"""Names that only models of four levels have, or of attentions where SDXL has none."""
_UNET_CORE = re.compile(r"(down|up)_blocks_\d+_(attentions|resnets|downsamplers|upsamplers)_|mid_block_(attentions|resnets)_"
                        r"|(input|output)_blocks_\d+_\d+_|middle_block_\d+_|conv_(in|out)$|time_embed|(add|class)_embedding_")
_NUMBERED = re.compile(r"(blocks?|layers?|refiner)_\d+_")


def family_of_model(names: Iterable[str]) -> str:
    """"sd1", "sd2", "sdxl", a family that brings its names, or "other" for another denoiser that is no UNet. Raises
    UserError for what is no model."""
    names = set(names)
    if own := next((each.family for each in BROUGHT.values() if each.owns_model(names)), ""):
        return own
    if any(".lora_" in name or ".hada_" in name or ".lokr_" in name for name in names):
        raise UserError("this is a LoRA, not a model; choose a model")
    if _UNET + "label_emb.0.0.weight" in names:
        return "sdxl"
    if _UNET + "input_blocks.0.0.weight" in names:
        # SD 2.x is told by its text encoder; without one, by linear layers where SD 1.x has 1×1 convolutions, which a name
        # does not show.
        return "sd2" if any(name.startswith(("cond_stage_model.model.", "clip_h.")) for name in names) else "sd1"
    if any(name.removeprefix(_UNET).startswith(_TRANSFORMERS) for name in names):
        return "other"
    raise UserError("this file holds no model that is known here, neither a UNet of Stable Diffusion nor a transformer; "
                    "choose a checkpoint")


def family_of_lora(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """"sd1", "sd2", "sdxl", a family that brings its names, or "" when neither names, shapes nor metadata tell. `shapes` are
    those of the file's tensors by name.

    Names and shapes come first: they cannot be mistaken, metadata can. The demo base's widths are nobody else's, so there
    metadata decides.
    """
    if own := next((each.family for each in BROUGHT.values() if each.owns_lora(shapes, metadata)), ""):
        return own
    layers = {split.layer for key in shapes if (split := split_key(key))}
    names = [underscored(layer) for layer in layers]
    for key, shape in shapes.items():
        split = split_key(key)
        if (split and split.part == DOWN and len(shape) > 1 and re.search(r"attn2_to_[kv]$", read_spelling(split.layer).core)
                and (family := CONTEXT_WIDTHS.get(shape[1]))):
            return family
    spelled = [read_spelling(layer) for layer in layers]
    if any(_ONLY_SDXL.search(core) for part, core in spelled if part == "unet"):
        return "sdxl"
    if str(metadata.get("ss_v2")) == "True":
        return "sd2"
    stated = stated_base(metadata)
    if own := named_in(stated, BROUGHT.values()):
        return own[0].family
    never = any(_NEVER_SDXL.search(core) for part, core in spelled if part == "unet")
    family = next((family for text, family in _BASE_VERSIONS if text in stated), "")
    if family and not (family == "sdxl" and never):
        return family
    denoiser = [name for name in names if not is_text(name)]
    if not never and all(map(is_unet_layer, denoiser)) and (any(part == "te2" for part, _ in spelled) or (denoiser and any(
            name.startswith("lora_te1_") for name in names))):
        return "sdxl"  # kohya's scripts number text encoders where there are two
    if not never and any(name.startswith(("lora_unet_input_blocks_", "lora_unet_output_blocks_")) for name in names):
        return "sdxl"  # of SD 1.x and 2.x they write diffusers' names
    if any(re.match(r"encoder_layers_(1[2-9]|2\d)_", core) for part, core in spelled if part != "unet"):
        return "sd2"
    return ""


def stated_base(metadata: Mapping[str, str]) -> str:
    """What metadata say of the base, in small letters."""
    said = (str(metadata.get(key, "")) for key in ("ss_base_model_version", "modelspec.architecture"))
    return " ".join(said).lower().strip()


def named_in(stated: str, families: Iterable[FamilyNames]) -> list[FamilyNames]:
    """The families that are named by the longest of their words in what metadata say of a base: "flux-2" is more than
    "flux"."""
    lengths = {each.family: max((len(word) for word in each.stated if word in stated), default=0) for each in families}
    return [BROUGHT[family] for family, length in lengths.items() if length and length == max(lengths.values())]


def is_unet_layer(name: str) -> bool:
    """Whether a LoRA's layer is named like one of a UNet of Stable Diffusion, of whichever size."""
    part, core = read_spelling(name)
    return part == "unet" and _UNET_CORE.match(core) is not None


def is_numbered(name: str) -> bool:
    """Whether a layer is one of many alike, as in every transformer."""
    return _NUMBERED.search(underscored(name)) is not None
