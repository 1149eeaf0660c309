"""The size of a LoRA's change in every block, as numbers and as an image."""
import re
from collections import defaultdict
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..artifacts.changes import change_norm, with_scale
from ..artifacts.layer_names import place, split_key
from ..artifacts.layer_names.blocks import ATTENTION, BLOCKS, CONVOLUTION, FEED_FORWARD, OTHER, SMALLEST
from ..drawing.fonts import fitted, font_and_text

COLORS = {ATTENTION: (74, 144, 226), FEED_FORWARD: (240, 160, 64), CONVOLUTION: (98, 178, 92), OTHER: (160, 160, 168)}
TITLES = {ATTENTION: "attention", FEED_FORWARD: "feed-forward", CONVOLUTION: "convolution", OTHER: "other"}
WIDTH, HEIGHT, MARGIN, LEGEND = 960, 420, 56, 64
PAPER, INK, PALE = (250, 250, 248), (40, 40, 44), (208, 208, 206)


def layers_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Layer → part → tensor."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if split := split_key(key):
            layers.setdefault(split.layer, {})[split.part] = tensor
    return layers


def norms_by_block(tensors: Mapping[str, Tensor], family: str, scales: Mapping[str, float | None] | None = None,
                   weights: Mapping[str, str] | None = None) -> dict[str, dict[str, float]]:
    """Block → kind → norm of all its layers' changes together, in the order of the data flow.

    `scales` are those that a file keeps beside its tensors. `weights` has a model's own names for layers, where a model is
    known: diffusers' names alone tell the block only in models with two ResNets per level.
    """
    squares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for layer, parts in layers_of(tensors).items():
        norm = change_norm(with_scale(parts, (scales or {}).get(layer)))
        if norm is not None:
            where = place((weights or {}).get(layer, layer), family)
            squares[where.block][where.kind] += norm**2
    order = [block for block in BLOCKS.get(family, BLOCKS[SMALLEST]) if block in squares]
    order += sorted(block for block in squares if block not in order)
    return {block: {kind: total**0.5 for kind, total in squares[block].items()} for block in order}


def draw_norms(norms: Mapping[str, Mapping[str, float]], title: str, lines: list[str]) -> Image.Image:
    """A bar per block, its length the norm of all changes in it, divided by the kinds' shares of its square."""
    image = Image.new("RGB", (WIDTH, HEIGHT + 22 * len(lines)), PAPER)
    pen = ImageDraw.Draw(image)
    small, plain_font = (ImageFont.load_default(size) for size in (12, 15))
    _line(pen, 14, title, 20)
    totals = {block: sum(value**2 for value in kinds.values()) ** 0.5 for block, kinds in norms.items()}
    top = max(totals.values(), default=0.0)
    bottom, height = HEIGHT - LEGEND, HEIGHT - LEGEND - 64
    for fraction in (0.0, 0.5, 1.0):
        y = bottom - fraction * height
        pen.line((MARGIN, y, WIDTH - 16, y), PALE)
        pen.text((MARGIN - 6, y), f"{fraction * top:.3g}", INK, small, anchor="rm")
    slot = (WIDTH - MARGIN - 16) / max(1, len(totals))
    for number, (block, total) in enumerate(totals.items()):
        left, y = MARGIN + number * slot, bottom
        for kind, value in norms[block].items():
            piece = height * value**2 / (total * top) if top and total else 0.0
            pen.rectangle((left + slot * 0.12, y - piece, left + slot * 0.88, y), COLORS[kind])
            y -= piece
        if slot >= 26 or number % 3 == 0:
            label = block if slot >= 42 else re.sub(r"(?<=^[A-Z])[A-Z]+(?=\d)", "", block)
            pen.text((left + slot / 2, bottom + 6), label, INK, small, anchor="ma")
    present = [kind for kind in COLORS if any(kind in kinds for kinds in norms.values())]
    for number, kind in enumerate(present):
        x = MARGIN + 160 * number
        pen.rectangle((x, HEIGHT - 32, x + 14, HEIGHT - 18), COLORS[kind])
        pen.text((x + 20, HEIGHT - 34), TITLES[kind], INK, plain_font)
    for number, line in enumerate(lines):
        _line(pen, HEIGHT + 22 * number, line, 15)
    return image


def _line(pen: ImageDraw.ImageDraw, top: int, text: str, size: int):
    """A line of text, cut where it would leave the image."""
    font, text = font_and_text(text, size)
    pen.text((MARGIN, top), fitted(pen, text, font, WIDTH - 2 * MARGIN), INK, font)
