"""The autoencoders of Qwen-Image under the names of their original files, which are those of Wan's video autoencoders.

Qwen-Image's is the one of Wan 2.1, Qwen-Image-2.1's has the blocks of Wan 2.2, each with layers of its own. Sources of the
facts: the original module trees (Wan-Video/Wan2.1 and Wan2.2, `wan/modules/vae*.py`) and ComfyUI's `comfy.ldm.wan`.
"""
import re
from collections.abc import Mapping

from .ldm_layout import Original

PARTS = (
    ("mid_block.resnets.0", "middle.0"), ("mid_block.attentions.0", "middle.1"), ("mid_block.resnets.1", "middle.2"),
    ("post_quant_conv", "conv2"), ("quant_conv", "conv1"), (".conv_in", ".conv1"), ("norm_out", "head.0"),
    ("conv_out", "head.2"), ("conv_shortcut", "shortcut"),
)
RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
"""Layers of a residual block; between them lie activations."""
FLAT = ("resample.1.weight", "to_qkv.weight", "proj.weight")
"""Kernels of one frame, which have no axis for time; all others of the original have one."""


def wan_vae_places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Original]:
    """The place in the original file of every tensor of diffusers' AutoencoderKLQwenImage or AutoencoderKLQwenImage21, by
    its name there. The latter has no axis for time in its kernels, where the original has one of length 1."""
    has_levels = any(".downsampler." in name for name in shapes)
    first_block = re.compile(r"decoder\.up_blocks\.0\.resnets\.(\d+)")
    resnets = 1 + max(int(match[1]) for name in shapes if (match := first_block.match(name)))

    def renamed(name: str) -> str:
        if match := re.fullmatch(r"(.*(?:resnets\.\d+|down_blocks\.\d+))\.(norm1|conv1|norm2|conv2)\.(\w+)", name):
            name = f"{match[1]}.{RESIDUAL[match[2]]}.{match[3]}"
        for diffusers, original in PARTS:
            name = name.replace(diffusers, original)
        if has_levels:
            name = re.sub(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1samples.\2.\1samples.\3", name)
            name = re.sub(r"down_blocks\.(\d+)\.downsampler", rf"downsamples.\1.downsamples.{resnets - 1}", name)
            return re.sub(r"up_blocks\.(\d+)\.upsampler", rf"upsamples.\1.upsamples.{resnets}", name)
        name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
        if match := re.fullmatch(r"decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.(.+)", name):
            place = int(match[1]) * (resnets + 1) + (resnets if match[2] is None else int(match[2]))
            name = f"decoder.upsamples.{place}.{match[3]}"
        return name

    places = {}
    for name, shape in shapes.items():
        timeless = len(shape) == 4 and name.endswith("weight") and not name.endswith(FLAT)
        places[name] = Original(renamed(name), (*shape[:2], 1, *shape[2:]) if timeless else shape)
    return places
