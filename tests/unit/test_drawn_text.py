"""Text that is drawn, whatever is in it, and sentences about sizes and numbers."""
import numpy as np
import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.combining import size_range
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.report.dataset_report import as_text, examine
from finetune.trainers.drawing import contact_sheets
from finetune.trainers.drawing.dataset_report_pages import draw_pages
from finetune.trainers.drawing.extraction_report import _Page
from finetune.trainers.drawing.fonts import drawable, fitted, font_and_text
from finetune.trainers.families.text.clip import clip_tokenizer
from finetune.trainers.stacking.inspection import draw_norms
from PIL import Image, ImageDraw
from support.generated_images import photograph

ODD = ["two\nlines", "a\r\n\tb", "turned\u202egnp.exe", "a\u2028b\u2029c", "\0\a\x1b[31mred", "x" * 20_000, "", "\n",
       "\ud800"]


@pytest.fixture(scope="module")
def pen():
    return ImageDraw.Draw(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("text", ODD)
def test_every_text_is_one_line_of_the_wanted_width(text, pen):
    font, line = font_and_text(text, 14)
    assert "\n" not in line and "\u202e" not in line and drawable(line) == line
    assert pen.textlength(fitted(pen, text, font, 100), font) <= 100
    tile = Image.new("RGB", (64, 64))
    sheet = contact_sheets.contact_sheet([[tile, tile]], [text], "step 1")
    assert sheet.size == contact_sheets.contact_sheet([[tile, tile]], ["short"], "step 1").size
    _Page(40).text(10, 10, text[:100])
    assert draw_norms({"MID": {}}, text, [text]).size == draw_norms({"MID": {}}, "a", ["b"]).size


def test_what_fits_is_not_cut_and_what_is_cut_says_so(pen):
    font, _ = font_and_text("a", 14)
    assert fitted(pen, "a cat", font, 200) == "a cat"
    cut = fitted(pen, "a cat on a mat " * 9, font, 200)
    assert cut.endswith("…") and cut.startswith("a cat on a") and 150 < pen.textlength(cut, font) <= 200


def test_a_report_of_names_that_break_lines(tmp_path):
    folder = tmp_path / "3_of\nall"
    folder.mkdir()
    photograph(0, (128, 96)).save(folder / "two\nlines\u202e.png")
    dataset = scan_folder(str(tmp_path), "input/my\ncats", subfolders="read, repeats by name")
    report = examine(dataset.model_copy(update={"name": "my\ncats"}), 64, clip_tokenizer())
    pages = draw_pages(report, 1)
    assert len(pages) == 2 and np.asarray(pages[1]).std() > 0
    assert "1 image of 128×96 pixels" in as_text(report) and "\u202e" not in as_text(report)


@pytest.mark.parametrize("sizes, words", [
    ([(512, 512)] * 3, "512×512 pixels"), ([(512, 1024), (1280, 480)], "512×1024 to 1280×480 pixels"),
    ([(480, 512), (512, 480)], "480×512 to 512×480 pixels"), ([(9, 9), (100, 1), (1, 200)], "9×9 to 1×200 pixels"),
])
def test_sizes_are_those_of_images(sizes, words):
    assert size_range([specs.DatasetImage(path="p", name="p", caption="", size=size, digest="") for size in sizes]) == words


def test_comparing_tells_how_far_it_is(tmp_path):
    for number in range(3):
        photograph(number, (64, 64)).save(tmp_path / f"{number}.png")
    told = []
    examine(scan_folder(str(tmp_path), "x"), 64, clip_tokenizer(), on_progress=lambda *now: told.append(now))
    compared = [(done, total) for what, done, total in told if what == "comparing images"]
    assert compared == [(1, 3), (3, 3)] and told[-1] == ("checking captions", 3, 3)
