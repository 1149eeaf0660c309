"""Previews laid out so that they can be compared: a sheet for a step, and a strip over the whole run.

Both are square images in rows, one row a prompt with the prompt above it, under a title. Their measures follow from the
size of an image and the number of columns, so that a strip can be cut together from sheets.
"""
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .fonts import Font, fitted

SMALLEST, LARGEST = 192, 256
"""Pixels of an image's side: smaller ones are enlarged to be looked at; in the strip larger ones are reduced."""
COLUMNS = 8
"""Most steps in a strip."""
MOST_ON_NODE, NODE_SHAPE = 12, 4 / 3
"""Images that can still be told from each other on a node, and the width of its room for them over the height."""
GAP = 4
PAPER, INK, GRAY = "white", (30, 30, 30), (110, 110, 110)


def contact_sheet(rows: Sequence[Sequence[Image.Image]], prompts: Sequence[str], title: str) -> Image.Image:
    """The images of one step: a row of `rows` per prompt."""
    scale = max(1, SMALLEST // rows[0][0].width)
    tiles = [[each.resize((each.width * scale, each.height * scale), Image.Resampling.NEAREST) for each in row]
             for row in rows]
    return _lay_out(tiles, prompts, [title])


def progress_strip(sheets: Sequence[tuple[int, Path]], prompts: Sequence[str], images: int) -> Image.Image:
    """The first image of each prompt (rows) at up to COLUMNS steps, evenly spread (columns).

    `sheets` are the (step, file) of contact sheets with `images` images per prompt, in the order of the steps.
    """
    chosen = spread(sheets, COLUMNS)
    columns = []
    for _, path in chosen:
        with Image.open(path) as file:
            sheet = file.convert("RGB")
        cells = _columns(sheet, len(prompts), images)[0]
        side = min(cells[0].width, LARGEST)
        columns.append([each.resize((side, side), Image.Resampling.LANCZOS) for each in cells])
    return _lay_out(list(zip(*columns)), prompts, ["before" if step == 0 else f"step {step}" for step, _ in chosen])


def first_image(path: Path, prompts: Sequence[str], images: int) -> Image.Image:
    """The first prompt's first image on a contact sheet with `images` images per prompt."""
    with Image.open(path) as file:
        return _columns(file.convert("RGB"), len(prompts), images)[0][0]


def sheet_on_node(path: Path, prompts: Sequence[str], images: int) -> Image.Image:
    """The images of a contact sheet with `images` images per prompt, arranged to be as large as can be on a node,
    each under its prompt: at most MOST_ON_NODE, of each prompt the first when there are more."""
    with Image.open(path) as file:
        sheet = file.convert("RGB")
    tiles = [(prompt, tile) for prompt, *row in zip(prompts, *_columns(sheet, len(prompts), images)) for tile in row]
    if len(tiles) > MOST_ON_NODE:
        tiles = tiles[::images]
    tiles = tiles[:MOST_ON_NODE]
    side = tiles[0][1].width
    columns = max(range(1, len(tiles) + 1), key=lambda columns: min(NODE_SHAPE / columns, 1 / -(-len(tiles) // columns)))
    line, rows = _heading(side), -(-len(tiles) // columns)
    arranged = Image.new("RGB", (columns * (side + GAP) - GAP, rows * (line + side)), PAPER)
    draw, font = ImageDraw.Draw(arranged), ImageFont.load_default(round(0.7 * line))
    for number, (prompt, tile) in enumerate(tiles):
        left, top = number % columns * (side + GAP), number // columns * (line + side)
        draw.text((left + GAP, top + line / 2), shorten(draw, prompt, font, side - 2 * GAP), INK, font, anchor="lm")
        arranged.paste(tile, (left, top + line))
    return arranged


def spread(items: Sequence, count: int) -> list:
    """At most `count` items, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(place * (len(items) - 1) / (count - 1))] for place in range(count)]


def _heading(side: int) -> int:
    """Height of a line of text above images `side` pixels wide."""
    return max(20, side // 10)


def _lay_out(rows: Sequence[Sequence[Image.Image]], prompts: Sequence[str], titles: Sequence[str]) -> Image.Image:
    side, line, columns = rows[0][0].width, _heading(rows[0][0].width), len(rows[0])
    width = columns * (side + GAP) - GAP
    sheet = Image.new("RGB", (width, line + len(rows) * (line + side)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(round(0.7 * line))
    for number, title in enumerate(titles):
        draw.text((number * (side + GAP) + GAP, line / 2), title, INK, font, anchor="lm")
    for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        top = line + number * (line + side)
        draw.text((GAP, top + line / 2), shorten(draw, prompt, font, width - 2 * GAP), GRAY, font, anchor="lm")
        for column, tile in enumerate(row):
            sheet.paste(tile, (column * (side + GAP), top + line))
    return sheet


def _columns(sheet: Image.Image, rows: int, columns: int) -> list[list[Image.Image]]:
    """The images of a contact sheet, column by column."""
    side = (sheet.width + GAP) // columns - GAP
    line = _heading(side)
    tops = [2 * line + number * (line + side) for number in range(rows)]
    lefts = [number * (side + GAP) for number in range(columns)]
    return [[sheet.crop((left, top, left + side, top + side)) for top in tops] for left in lefts]


def shorten(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """`text` as one line, cut with an ellipsis where it would be wider than `width` pixels."""
    return fitted(draw, text, font, width)
