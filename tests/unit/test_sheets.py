"""Previews laid out: the strip of a long run, and the images of a step on a node."""
import numpy as np
import pytest
from finetune.trainers.drawing import contact_sheets
from PIL import Image


def test_long_runs_have_eight_columns_and_long_prompts_are_cut(tmp_path):
    sheets_of_run = []
    for step in range(0, 101, 4):
        tile = Image.new("RGB", (300, 300), (step * 2, 0, 0))
        path = tmp_path / f"step_{step:06d}.png"
        contact_sheets.contact_sheet([[tile, tile]], ["a very long prompt " * 20], f"step {step}").save(path)
        sheets_of_run.append((step, path))
    strip = contact_sheets.progress_strip(sheets_of_run, ["a very long prompt " * 20], 2)
    assert strip.width == 8 * (256 + 4) - 4
    reds = [strip.getpixel((column * 260 + 128, strip.height // 2))[0] for column in range(8)]
    assert reds == [2 * step for step in (0, 16, 28, 44, 56, 72, 84, 100)]


@pytest.mark.parametrize("prompts, images, columns, rows", [
    (1, 1, 1, 1), (4, 1, 2, 2), (1, 2, 2, 1), (2, 3, 3, 2), (6, 1, 3, 2), (5, 16, 3, 2), (40, 1, 4, 3)])
def test_previews_on_a_node_are_as_large_as_can_be(tmp_path, prompts, images, columns, rows):
    def shade(prompt, image):
        return (5 * prompt + 20, 12 * image + 20, 99)

    names = [f"prompt {number} " * 20 for number in range(prompts)]
    contact_sheets.contact_sheet([[Image.new("RGB", (64, 64), shade(prompt, image)) for image in range(images)]
                          for prompt in range(prompts)], names, "step 5").save(tmp_path / "sheet.png")
    shown = contact_sheets.sheet_on_node(tmp_path / "sheet.png", names, images)
    assert shown.size == (columns * 196 - 4, rows * (192 + 20))
    tiles = [(prompt, image) for prompt in range(prompts) for image in range(images)]
    tiles = tiles if len(tiles) <= 12 else [(prompt, 0) for prompt in range(min(prompts, 12))]
    for number, tile in enumerate(tiles):
        left, top = number % columns * 196, number // columns * 212
        assert shown.getpixel((left, top + 20)) == shown.getpixel((left + 191, top + 211)) == shade(*tile)
        heading = np.asarray(shown.crop((left, top, left + 192, top + 20)).convert("L"))
        assert heading.min() < 100, "its prompt stands above it"
