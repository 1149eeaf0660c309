"""The report as a whole: its figures, its words and its pages."""
import numpy as np
import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.images.buckets import bucket_sizes, fit
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.report import dataset_report as report_module
from finetune.trainers.data.report.advice import PRACTICES, advice
from finetune.trainers.data.report.dataset_report import as_text, aspects, buckets, examine
from finetune.trainers.drawing import fonts
from finetune.trainers.drawing.dataset_report_pages import (
    CAPTION_LINES,
    GRAY,
    ORANGE,
    PER_PAGE,
    RED,
    WIDTH,
    chosen,
    draw_pages,
    wrapped,
)
from finetune.trainers.families.text.clip import clip_tokenizer
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from support.generated_images import photograph


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


@pytest.fixture
def folder(tmp_path):
    """Six images: fine, fine, blurred, small, without its trigger, and a copy of the first."""
    folder = tmp_path / "mine"
    folder.mkdir()
    images = [photograph(0, (700, 600)), photograph(1, (600, 600)), photograph(2).filter(ImageFilter.GaussianBlur(6)),
              photograph(3, (96, 96)), photograph(4, (512, 640)), photograph(0, (350, 300))]
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{'a' if number == 4 else 'ohwx'} dog, number {number}")
    return folder


def test_findings_and_figures(folder, tokenizer):
    dataset = scan_folder(str(folder), "input/mine", repeats=2)
    told = []
    report = examine(dataset, 256, tokenizer, "ohwx", on_progress=lambda *now: told.append(now))
    assert {finding.kind: finding.images for finding in report.findings} == {
        "near-duplicates": (0, 5), "blurred": (2,), "tiny": (3,), "missing trigger": (4,),
        "fused with the trigger": ()}
    assert report.marks == {0: ["near-duplicate"], 5: ["near-duplicate"], 2: ["blurred"], 3: ["tiny"], 4: ["no trigger"]}
    assert told[:6] == [("looking at images", done, 6) for done in range(1, 7)]
    assert aspects(report) == [("3:4", 1), ("1:1", 3), ("4:3", 2)]
    crops = [fit(image.size, bucket_sizes(256)) for image in dataset.images]
    assert sum(number for _, number, _ in buckets(report)) == 6
    for bucket, number, lost in buckets(report):
        inside = [1 - crop.kept for crop in crops if crop.bucket == bucket]
        assert len(inside) == number and lost == pytest.approx(sum(inside) / number)
    text = as_text(report)
    for words in ("input/mine: 6 images of 96×96 to 700×600 pixels, 6 with captions, 12 in a round with repeats.",
                  "- blurred: 1 image has no sharp edges", "2.png (No. 3)", "0.png (No. 1), 5.png (No. 6)",
                  "dog 6, number 6, ohwx 5",
                  "LoRA: 10 to 20 are usual; with 6", "show each 42 to 133 times"):
        assert words in text, words


def test_a_faultless_dataset(tmp_path, tokenizer):
    for number, words in enumerate(("red on grass", "seen from below", "at the sea")):
        photograph(number, (300, 300)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"ohwx {words}")
    report = examine(scan_folder(str(tmp_path), "fine"), 256, tokenizer, "ohwx")
    assert report.findings == () and "Nothing to complain about." in as_text(report)
    assert draw_pages(report)


def test_the_datasets_own_trigger_is_looked_for(folder, tokenizer):
    dataset = scan_folder(str(folder), "mine").model_copy(update={"trigger": "number"})
    assert not [finding for finding in examine(dataset, 256, tokenizer).findings if finding.kind == "missing trigger"]
    [finding] = [each for each in examine(dataset, 256, tokenizer, "zwx").findings if each.kind == "missing trigger"]
    assert len(finding.images) == 6


def test_images_that_went_away_are_named(folder, tokenizer):
    dataset = scan_folder(str(folder), "mine")
    (folder / "1.png").unlink()
    report = examine(dataset, 256, tokenizer)
    assert report.marks[1] == ["unreadable"] and report.measured[1] is None
    assert draw_pages(report, 1, tokenizer)


# ---- pages ---------------------------------------------------------------------------------------------------------

def has(page: Image.Image, color) -> bool:
    return bool((np.asarray(page) == color).all(axis=2).any())


def cell(page: Image.Image, column: int, columns: int) -> Image.Image:
    width = WIDTH // columns
    return page.crop((column * width, 60, (column + 1) * width, page.height))


def test_pages_have_images_marks_and_captions(folder, tokenizer):
    long = "ohwx dog, " + "very " * 90 + "END"
    (folder / "1.txt").write_text(long)
    dataset = scan_folder(str(folder), "mine")
    first, sheet = draw_pages(examine(dataset, 256, tokenizer, "ohwx"), 4, tokenizer)
    assert first.size == sheet.size and first.width == WIDTH
    shown = np.asarray(sheet.crop((40, 100, 350, 380)).convert("RGB").resize((16, 16)), np.float32)
    wanted = np.asarray(photograph(0, (700, 600)).resize((310, 266)).crop((0, 0, 310, 266)).resize((16, 16)), np.float32)
    assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.5, "the first image is in the first cell"
    assert has(first, ORANGE) and has(cell(sheet, 0, 4), ORANGE) and has(cell(sheet, 1, 4), RED), "the cut is red"
    fine = np.asarray(cell(draw_pages(examine(scan_folder(str(folder), "mine"), 256, tokenizer, "ohwx"), 4)[1], 1, 4))
    assert (fine == GRAY).all(axis=2).any() and not (fine[:420] == RED).all(axis=2).any()


def image_report(count: int, marked=()) -> report_module.Report:
    images = tuple(
        specs.DatasetImage(path=f"/nowhere/{number}.png", name=f"{number}.png", caption="a", size=(8, 8), digest="x")
        for number in range(count))
    finding = report_module.Finding("blurred", "blurred", "Blurred.", tuple(marked))
    return report_module.Report(specs.DatasetSpec(name="d", images=images), "", 64, (None,) * count,
                                (fit((8, 8), [(64, 64)]),) * count, (finding,), (("a", count),))


@pytest.mark.parametrize("count, most, sheets", [(1, 4, 1), (64, 4, 1), (65, 4, 2), (200, 2, 2), (5, 0, 0)])
def test_pages_are_split(count, most, sheets):
    pages = draw_pages(image_report(count), most)
    assert len(pages) == 1 + sheets and len({page.size for page in pages}) == 1


def test_images_with_findings_come_first():
    everything = chosen(image_report(500, marked=[7, 8, 499]), PER_PAGE)
    assert len(everything) == PER_PAGE == len(set(everything)) and {7, 8, 499} <= set(everything)
    assert everything == sorted(everything) and max(np.diff(everything)) < 20, "the others are spread"
    assert len(chosen(image_report(500, marked=range(0, 500, 2)), PER_PAGE)) == PER_PAGE
    assert chosen(image_report(5, marked=[1]), PER_PAGE) == [0, 1, 2, 3, 4]
    assert chosen(image_report(5), 0) == []


def test_lines_break_between_words_and_within_long_ones():
    draw, font = ImageDraw.Draw(Image.new("RGB", (10, 10))), ImageFont.load_default(14)
    for text in ("a short one", "word " * 50, "w" * 300, "一" * 50, ""):
        lines = wrapped(draw, text, font, 120, 50)
        assert all(draw.textlength(line, font) <= 121 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    cut = wrapped(draw, "word " * 50, font, 120, CAPTION_LINES)
    assert len(cut) == CAPTION_LINES and cut[-1].endswith("…")


def test_letters_of_other_scripts_get_a_font_that_has_them_or_a_box(monkeypatch):
    font, text = fonts.font_and_text("a dog, 64×64", 14)
    assert font is fonts._fonts(14)[0] and text == "a dog, 64x64"
    monkeypatch.setattr(fonts, "_fonts", lambda size: [ImageFont.load_default(size)])
    lacking = fonts.font_and_text("a \U0002f800 b", 14)[1]
    assert lacking in ("a □ b", "a ? b")
    monkeypatch.setattr(fonts, "_has", lambda font, letter: letter != "犬" or font == "other")
    monkeypatch.setattr(fonts, "_fonts", lambda size: ["usual", "other"])
    assert fonts.font_and_text("a 犬", 14) == ("other", "a 犬") and fonts.font_and_text("a", 14) == ("usual", "a")


def test_advice_follows_the_number_of_images():
    assert [practice.method for practice in PRACTICES] == [line.split(":")[0] for line in advice(4, 4)][:3]
    few, usual, many = (advice(number, number)[0] for number in (5, 15, 60))
    assert "with 5 expect" in few and "15 is a usual number" in usual and "60 are more to learn from" in many
    assert "500 to 1,600 steps of one image show each 100 to 320 times" in few and "kohya" in few
    assert "800 with class images" in advice(4, 4)[1]


def test_little_is_kept_of_each_image(folder, tokenizer):
    for each in examine(scan_folder(str(folder), "mine"), 256, tokenizer).measured:
        for value in vars(each).values():
            assert isinstance(value, (str, int, float, bytes, type(None)))
            assert not isinstance(value, (str, bytes)) or len(value) < 2000
