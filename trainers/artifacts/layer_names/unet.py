"""Names of layers of Stable Diffusion's UNets: diffusers' and those of the original code (CompVis, Stability), both ways.

LoRA files carry the one or the other, checkpoints and ComfyUI the original ones. Sources of the facts: the original
repositories' module trees and kohya's `sdxl_model_util.py`. The tables below are the only ones of these names.
"""
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LINEAR, POINT, SQUARE = (), (1, 1), (3, 3)
"""Kernels: of a linear layer, of a 1×1 and of a 3×3 convolution."""
TOP = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}
"""diffusers' → original names of what stands outside the blocks."""
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
ALIASES = {"class_embedding": "add_embedding"}
"""Another name of diffusers' for the same module, which ComfyUI accepts in LoRA files."""
_TRANSFORMER = (*(f"attn{number}.to_{part}" for number in (1, 2) for part in ("q", "k", "v", "out.0")),
                "ff.net.0.proj", "ff.net.2")


def original_unet_name(name: str, layers_per_block: int, up_blocks_with_attention: Iterable[bool]) -> str:
    """The original name of a diffusers UNet module or parameter, without the `model.diffusion_model.` prefix.

    `up_blocks_with_attention` says for each up block whether it holds attentions: the upsampler's index depends on it.
    Raises KeyError for a name that belongs to no UNet2DConditionModel of this layout.
    """
    for diffusers, original in TOP.items():
        if name == diffusers or name.startswith(diffusers + "."):
            return original + name[len(diffusers):]
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if match:
        kind, index, rest = match.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(index)}.{_original(rest)}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if not match:
        raise KeyError(name)
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        first = 1 + (layers_per_block + 1) * block
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.{rest.replace('conv', 'op', 1)}"
        place = f"input_blocks.{first + layer}"
    else:
        first = (layers_per_block + 1) * block
        if kind == "upsamplers":
            return f"output_blocks.{first + layers_per_block}.{1 + list(up_blocks_with_attention)[block]}.{rest}"
        place = f"output_blocks.{first + layer}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_original(rest)}"


def diffusers_unet_name(module: str, layers_per_block: int) -> str:
    """The way back, for a module's original name; what is not known stays as it is."""
    top = next((diffusers for diffusers, original in TOP.items() if module == original), None)
    if top:
        return top
    match = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)|middle_block\.(\d)\.(.+)", module)
    if not match:
        return module
    if match[5]:
        place, rest = int(match[5]), match[6]
        return f"mid_block.attentions.0.{rest}" if place == 1 else f"mid_block.resnets.{place // 2}.{_diffusers(rest)}"
    side, number, place, rest = match[1], int(match[2]), int(match[3]), match[4]
    block, layer = divmod(number - 1 if side == "input" else number, layers_per_block + 1)
    name = f"{'down' if side == 'input' else 'up'}_blocks.{block}"
    if rest in ("op", "conv"):
        return f"{name}.{'downsamplers.0.conv' if rest == 'op' else 'upsamplers.0.conv'}"
    return f"{name}.resnets.{layer}.{_diffusers(rest)}" if place == 0 else f"{name}.attentions.{layer}.{rest}"


def _original(rest: str) -> str:
    part, dot, tail = rest.partition(".")
    return RESNET[part] + dot + tail


def _diffusers(rest: str) -> str:
    for diffusers, original in RESNET.items():
        if rest == original or rest.startswith(original + "."):
            return diffusers + rest[len(original):]
    return rest


def layers_per_block(modules: Iterable[str]) -> int | None:
    """From the original names of a whole UNet's modules: the first downsampler follows the first level's layers."""
    places = [int(match[1]) for module in modules if (match := re.match(r"input_blocks\.(\d+)\.0\.op(\.|$)", module))]
    return min(places) - 1 if places else None


@dataclass(frozen=True)
class UNetLayout:
    """What the names of a UNet's layers follow from: per level the width as a multiple of the first and the number of
    transformer blocks of its attentions (0: none), the same of the middle, and whether projections are linear layers."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    linear: bool
    size_embedding: bool = False
    layers_per_block: int = 2

    def modules(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """(diffusers' name, original name, kernel) of every layer that a LoRA can change."""
        attention = [depth > 0 for depth in reversed(self.depths)]
        for name, kernel in self._diffusers_modules():
            yield name, original_unet_name(name, self.layers_per_block, attention), kernel

    def _diffusers_modules(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name in TOP:
            if "norm" not in name and (self.size_embedding or not name.startswith("add_")):
                yield name, SQUARE if name.startswith("conv") else LINEAR
        for level, depth in enumerate(self.depths):
            for layer in range(self.layers_per_block):
                wider = level > 0 and layer == 0 and self.widths[level] != self.widths[level - 1]
                yield from self._layer(f"down_blocks.{level}", layer, depth, wider)
            if level < len(self.depths) - 1:
                yield f"down_blocks.{level}.downsamplers.0.conv", SQUARE
        yield from self._layer("mid_block", 0, self.middle, False)
        yield from self._layer("mid_block", 1, 0, False)
        for level, depth in enumerate(reversed(self.depths)):
            for layer in range(self.layers_per_block + 1):
                yield from self._layer(f"up_blocks.{level}", layer, depth, True)
            if level < len(self.depths) - 1:
                yield f"up_blocks.{level}.upsamplers.0.conv", SQUARE

    def _layer(self, block: str, layer: int, depth: int, shortcut: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        resnet, attention = f"{block}.resnets.{layer}", f"{block}.attentions.{layer}"
        yield f"{resnet}.conv1", SQUARE
        yield f"{resnet}.time_emb_proj", LINEAR
        yield f"{resnet}.conv2", SQUARE
        if shortcut:
            yield f"{resnet}.conv_shortcut", POINT
        if depth:
            for name in ("proj_in", "proj_out"):
                yield f"{attention}.{name}", LINEAR if self.linear else POINT
        for number in range(depth):
            for name in _TRANSFORMER:
                yield f"{attention}.transformer_blocks.{number}.{name}", LINEAR
