"""From the weights of a checkpoint file to the layers of a LoRA file, by names alone: no model is built.

UNets of SD 1.x and 2.x get diffusers' names, which kohya writes for them; SDXL and the transformers of other families
their own; text encoders in OpenCLIP's layout are split into q, k and v. Whose formats: see `ldm_layout` and `lora`.
"""
import re
from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping

from ..errors import UserError

UNET = "model.diffusion_model."
RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}
TOP = {
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out", "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
}
OPEN_CLIP = (("attn.out_proj", "self_attn.out_proj"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))
TRANSFORMERS = ("joint_blocks.", "double_blocks.", "single_blocks.", "transformer_blocks.", "single_transformer_blocks.",
                "layers.")
TEXT = ("cond_stage_model.", "conditioner.")
OTHER_PARTS = ("first_stage_model.", "vae.", "text_encoders.", "model_ema.")
NATIVE_TEXT = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}


@dataclass(frozen=True)
class Layer:
    """One layer that a LoRA can change: the weight `tensor` of the checkpoint, or the rows `part` of `parts` of it.

    `key` is its name in kohya's files, `diffusers` in those of diffusers and peft ("" where those cut the layer otherwise),
    `native` in ComfyUI's own.
    """

    key: str
    tensor: str
    block: str
    diffusers: str
    native: str
    part: int = 0
    parts: int = 1


def layers(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Layer]:
    """All layers of a checkpoint, from the names and shapes of its tensors, in the file's order."""
    names, family = list(shapes), family_of(shapes)
    diffusers = diffusers_names(names) if family in ("sd1", "sd2", "sdxl") else {}
    start = UNET if any(name.startswith(UNET) for name in names) else ""
    # Only ComfyUI's names for diffusers' Flux begin otherwise; whatever has original names is lora_unet_ everywhere.
    prefix = "lora_transformer_" if any("single_transformer_blocks." in name for name in names) else "lora_unet_"
    for name in names:
        if not name.endswith((".weight", ".in_proj_weight")) or len(shapes[name]) not in (2, 4) or "embedding" in name:
            continue
        if name.startswith(TEXT):
            yield from _text_layers(name, family)
        elif name.startswith(start) and not name.startswith(OTHER_PARTS):
            module = name.removeprefix(start).removesuffix(".weight")
            own = diffusers[module] if family in ("sd1", "sd2") else module
            yield Layer(prefix + own.replace(".", "_"), name, block_of(module),
                        f"unet.{diffusers[module]}" if diffusers else "", f"diffusion_model.{module}")


def family_of(names: Iterable[str]) -> str:
    """"sd1", "sd2", "sdxl", or "other" for a denoiser that is no UNet. Raises UserError for what is no model."""
    names = set(names)
    if any(".lora_" in name or ".hada_" in name or ".lokr_" in name for name in names):
        raise UserError("this is a LoRA, not a model; choose a model")
    if UNET + "label_emb.0.0.weight" in names:
        return "sdxl"
    if UNET + "input_blocks.0.0.weight" in names:
        # SD 2.x is told by its text encoder; without one, by linear layers where SD 1.x has 1×1 convolutions, which a name
        # does not show.
        return "sd2" if any(name.startswith("cond_stage_model.model.") for name in names) else "sd1"
    if any(name.removeprefix(UNET).startswith(TRANSFORMERS) for name in names):
        return "other"
    raise UserError("this file holds no model that is known here, neither a UNet of Stable Diffusion nor a transformer; "
                    "choose a checkpoint")


def flat(name: str) -> str:
    """A layer's name without regard to how it is separated: kohya puts underscores for dots."""
    return name.replace(".", "_")


def by_any_name(found: Iterable[Layer]) -> dict[str, Layer]:
    """Every layer under all names that files give it, flat."""
    table = {}
    for layer in found:
        names = [layer.key, layer.diffusers, layer.native]
        if layer.key.startswith("lora_unet_"):
            bare = layer.key.removeprefix("lora_unet_")
            names += ["lora_unet_" + layer.native.removeprefix("diffusion_model."), f"lycoris_{bare}", f"transformer_{bare}"]
        if layer.key.startswith("lora_te1_"):  # files for one encoder do not number it
            names.append("lora_te_" + layer.key.removeprefix("lora_te1_"))
        table |= {flat(name): layer for name in names if name and flat(name) not in table}
    return table


def block_of(module: str) -> str:
    """For reports: "IN04", "MID", "OUT11", "double_blocks 3", "text"."""
    match = re.match(r"(input|middle|output)_blocks?\.(\d+)\.|(\w*blocks|layers)\.(\d+)\.", module)
    if not match:
        return "other"
    if match[1]:
        return "MID" if match[1] == "middle" else f"{match[1][:-3].upper()}{int(match[2]):02}"
    return f"{match[3]} {match[4]}"


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Original → diffusers names of a UNet's modules, without prefix and `.weight`: the way back of
    `ldm_layout.original_unet_name`. The number of layers per block is read from where the downsamplers are."""
    modules = [name.removeprefix(UNET).removesuffix(".weight") for name in names
               if name.startswith(UNET) and name.endswith(".weight")]
    downsamplers = sorted(int(match[1]) for module in modules if (match := re.match(r"input_blocks\.(\d+)\.0\.op$", module)))
    if not downsamplers:
        raise UserError("This UNet has no downsamplers where they are expected; it is of no family that is known here")
    period = downsamplers[0]  # layers per block + 1
    return {module: _diffusers_name(module, period) for module in modules}


def _diffusers_name(module: str, period: int) -> str:
    if module in TOP:
        return TOP[module]
    match = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)|middle_block\.(\d)\.(.+)", module)
    if not match:
        return module
    if match[5]:
        place = int(match[5])
        return f"mid_block.attentions.0.{match[6]}" if place == 1 else f"mid_block.resnets.{place // 2}.{_resnet(match[6])}"
    side, number, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    block, layer = divmod(number - 1, period) if side == "input" else divmod(number, period)
    name = f"{'down' if side == 'input' else 'up'}_blocks.{block}"
    if rest in ("op", "conv"):
        return f"{name}.{'downsamplers.0.conv' if rest == 'op' else 'upsamplers.0.conv'}"
    if place == 0:
        return f"{name}.resnets.{layer}.{_resnet(rest)}"
    return f"{name}.attentions.{layer}.{rest}"


def _resnet(rest: str) -> str:
    for original, diffusers in RESNET.items():
        if rest == original or rest.startswith(original + "."):
            return diffusers + rest[len(original):]
    return rest


def _text_layers(name: str, family: str) -> Iterator[Layer]:
    """CLIP text encoders in transformers' and in OpenCLIP's layout; SDXL's second is `te2`."""
    match = re.match(r"(cond_stage_model\.|conditioner\.embedders\.(\d)\.)(transformer|model)\.(.+)$", name)
    if not match:
        return
    number = int(match[2] or 0)

    def layer(place: str, module: str, part: int = 0, parts: int = 1) -> Layer:
        path = f"text_model.encoder.layers.{place}.{module}"
        te, component = ("te", "text_encoder") if match[2] is None else (f"te{number + 1}", f"text_encoder{'_2' * number}")
        native = f"text_encoders.{NATIVE_TEXT[family][number]}.transformer.{path}" if family in NATIVE_TEXT else ""
        return Layer(f"lora_{te}_{flat(path)}", name, "text", f"{component}.{path}", native, part, parts)

    hugging = re.match(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(.+)\.weight$", match[4])
    if hugging:
        yield layer(hugging[1], hugging[2])
        return
    open_clip = re.match(r"transformer\.resblocks\.(\d+)\.(.+?)(?:\.|_)weight$", match[4])
    if not open_clip:
        return
    place, rest = open_clip.groups()
    if rest == "attn.in_proj":
        for part, letter in enumerate("qkv"):
            yield layer(place, f"self_attn.{letter}_proj", part, 3)
        return
    for original, transformers in OPEN_CLIP:
        if rest == original:
            yield layer(place, transformers)
