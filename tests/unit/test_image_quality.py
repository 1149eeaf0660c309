"""Every rule on pixels: an image that it finds, and images that it leaves alone."""
from pathlib import Path

import numpy as np
import pytest
from finetune.trainers.data.images.buckets import bucket_sizes, fit
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.report.dataset_report import copies, image_findings, mode_findings
from finetune.trainers.data.report.image_quality import (
    blockiness,
    blurred,
    compressed,
    jpeg_quality,
    measure,
    odd_mode,
    sharpness,
)
from finetune.trainers.data.report.near_duplicates import fingerprint, similar_groups
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from support.generated_images import as_jpeg, drawing, photograph

ROOT = Path(__file__).resolve().parents[2]
EMOJI = sorted((ROOT / "example_datasets" / "openmoji").glob("*.png"))


def measured_as(tmp_path, image: Image.Image, name: str = "image.png", **options):
    image.save(tmp_path / name, **options)
    return measure(str(tmp_path / name))


# ---- blurred -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [photograph, lambda number: drawing(number, 512)], ids=["photograph", "drawing"])
@pytest.mark.parametrize("radius, found", [(0, False), (0.7, False), (4, True), (8, True)])
@pytest.mark.parametrize("side", [384, 1200])
def test_blurred_by_itself(make, radius, found, side, tmp_path):
    """The radius is in pixels of 512: a large image is as blurred as its reduced copy."""
    image = make(1).resize((512, 512)).filter(ImageFilter.GaussianBlur(radius))
    each = measured_as(tmp_path, image.resize((side, side)))
    assert (blurred([each]) == (0,)) == found, each.sharpness


def test_blurred_beside_the_others(tmp_path):
    """Soft by itself is no fault in soft company."""
    sharp = [measured_as(tmp_path, photograph(number), f"{number}.png") for number in range(4)]
    soft = [measured_as(tmp_path, photograph(number).filter(ImageFilter.GaussianBlur(1.1)), f"soft {number}.png")
            for number in range(4)]
    assert blurred([*sharp, soft[0]]) == (4,)
    assert blurred(soft) == () and blurred(sharp) == ()


def test_sharpness_does_not_depend_on_contrast_or_background():
    gray = np.asarray(photograph(0).convert("L"), np.float32)
    assert sharpness(gray * 0.3 + 20) == pytest.approx(sharpness(gray), rel=1e-3)
    assert sharpness(np.full((64, 64), 128, np.float32)) is None
    small = np.asarray(drawing(3, 200).convert("L"), np.float32)
    wide = np.pad(small, 60, constant_values=255)
    assert sharpness(wide) == pytest.approx(sharpness(small), rel=0.5)


def test_emoji_and_plain_images_are_not_blurred(tmp_path):
    assert blurred([measure(str(path)) for path in EMOJI]) == ()
    assert blurred([measured_as(tmp_path, Image.new("RGB", (300, 300), "red"))]) == ()


# ---- compressed ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("quality, found", [
    (5, True), (10, True), (30, True), (49, True), (50, False), (75, False), (90, False)])
def test_compressed_by_its_tables(quality, found, tmp_path):
    each = measured_as(tmp_path, photograph(0), "image.jpg", quality=quality)
    assert each.jpeg_quality == quality and compressed(each) == found


def test_quality_is_that_of_pillow(tmp_path):
    for quality in range(1, 99, 7):
        Image.new("RGB", (16, 16)).save(tmp_path / "q.jpg", quality=quality)
        with Image.open(tmp_path / "q.jpg") as file:
            assert jpeg_quality(file.quantization) == pytest.approx(quality, abs=1)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("quality, found", [(8, True), (15, True), (75, False), (90, False)])
def test_compressed_once_and_saved_as_something_else(number, quality, found, tmp_path):
    each = measured_as(tmp_path, as_jpeg(photograph(number), quality))
    assert each.jpeg_quality is None and compressed(each) == found, each.blockiness


def test_drawings_and_large_pixels_have_no_blocks(tmp_path):
    assert not any(compressed(measure(str(path))) for path in EMOJI)
    pixels = photograph(0, (48, 48)).resize((384, 384), Image.Resampling.NEAREST)  # 8 × 8 pixels each, like JPEG's blocks
    assert blockiness(pixels) == 1.0
    stripes = Image.fromarray(np.tile(np.uint8([0, 0, 0, 0, 200, 200, 200, 200]), (96, 24))).convert("RGB")
    assert blockiness(stripes) == 1.0
    assert blockiness(Image.new("RGB", (9, 9))) == 1.0


# ---- color modes --------------------------------------------------------------------------------------------------

def sixteen_bit(size=(40, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65535, size, dtype=np.uint16))


@pytest.mark.parametrize("make, name, found", [
    (lambda: photograph(0, (40, 40)), "a.png", None),
    (lambda: photograph(0, (40, 40)), "a.jpg", None),
    (lambda: photograph(0, (40, 40)).convert("RGBA"), "a.webp", None),
    (lambda: photograph(0, (40, 40)).convert("CMYK"), "a.jpg", "CMYK"),
    (sixteen_bit, "a.png", "16 bit"),
    (sixteen_bit, "a.tif", "16 bit"),
    (lambda: photograph(0, (40, 40)).quantize(), "a.png", "palette"),
    (lambda: photograph(0, (40, 40)).convert("L"), "a.png", "gray"),
    (lambda: photograph(0, (40, 40)).convert("L").convert("RGB"), "a.jpg", "gray"),
    (lambda: Image.merge("RGBA", (*photograph(0, (40, 40)).split(), Image.linear_gradient("L").resize((40, 40)))), "a.png",
     "transparent"),
])
def test_color_modes(make, name, found, tmp_path):
    assert odd_mode(measured_as(tmp_path, make(), name)) == found


def test_sixteen_bits_of_color_and_animations(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)  # 16 bits, RGB: Pillow reads such files but writes none
    rows = b"".join(b"\0" + np.random.default_rng(row).bytes(8 * 6) for row in range(8))
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
                                        + chunk(b"IEND", b""))
    assert odd_mode(measure(str(tmp_path / "deep.png"))) == "16 bit"
    frames = [photograph(number, (32, 32)) for number in range(3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    assert odd_mode(measure(str(tmp_path / "moving.webp"))) == "animated"


def test_a_gray_dataset_is_one_on_purpose(tmp_path):
    gray = measured_as(tmp_path, photograph(0, (40, 40)).convert("L"), "gray.png")
    color = measured_as(tmp_path, photograph(0, (40, 40)), "color.png")
    assert mode_findings([(0, gray), (1, gray)]) == []
    assert [(finding.mark, finding.images) for finding in mode_findings([(0, color), (1, gray)])] == [("gray", (1,))]


# ---- size ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size, resolution, kinds", [
    ((512, 512), 512, []), ((1000, 800), 512, []), ((470, 470), 512, []), ((400, 400), 512, ["tiny"]),
    ((400, 400), 256, []), ((1280, 512), 512, []), ((1600, 500), 512, ["cropped"]), ((300, 1200), 512, ["cropped"]),
    ((900, 200), 512, ["tiny", "cropped"]),
])
def test_tiny_and_cropped(size, resolution, kinds):
    findings = image_findings([None], [fit(size, bucket_sizes(resolution))], resolution)
    assert [finding.kind for finding in findings] == ["unreadable", *kinds]


# ---- copies --------------------------------------------------------------------------------------------------------

def cropped(image: Image.Image, fraction: float, left=0.5, top=0.5) -> Image.Image:
    width, height = (round(length * (1 - fraction)) for length in image.size)
    x, y = round((image.width - width) * left), round((image.height - height) * top)
    return image.crop((x, y, x + width, y + height))


COPIES = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "a fifth of the size": lambda image: image.resize((image.width // 5, image.height // 5)),
    "recompressed": lambda image: as_jpeg(image, 15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "mirrored": ImageOps.mirror,
    "stretched": lambda image: image.resize((image.width, round(image.height * 0.85))),
    "cut by 6 % around": lambda image: cropped(image, 0.06),
    "cut by 5 % below": lambda image: image.crop((0, 0, image.width, round(image.height * 0.95))),
    "cut by 10 % at two sides": lambda image: cropped(image, 0.1, 0, 0),
    "cut, smaller and recompressed": lambda image: as_jpeg(cropped(image, 0.05).resize((200, 200)), 30),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_found(change):
    for number in range(6):
        original = photograph(number)
        prints = [fingerprint(each) for each in (photograph(50), original, photograph(51), change(original))]
        assert similar_groups(prints) == [(1, 3)], number


@pytest.mark.parametrize("change", ["half the size", "recompressed", "darker", "mirrored", "cut by 6 % around"])
def test_copies_of_drawings_on_white_are_found(change):
    images = [Image.open(path).convert("RGB") for path in EMOJI[:8]]
    prints = [fingerprint(image) for image in images]
    found = similar_groups([*prints, *(fingerprint(COPIES[change](image)) for image in images)])
    assert found == [(number, number + 8) for number in range(8)]


def test_different_images_are_not_copies():
    assert len(EMOJI) == 20
    assert similar_groups([fingerprint(Image.open(path).convert("RGB")) for path in EMOJI]) == []
    assert similar_groups([fingerprint(photograph(number)) for number in range(40)]) == []
    assert similar_groups([fingerprint(drawing(number)) for number in (0, 2, 10, 12, 19, 23)]) == []


def test_plain_images_are_told_apart_by_color():
    prints = [fingerprint(Image.new("RGB", (50, 50), color)) for color in ("red", "blue", "#fe0101", "white", "#f0f0f0")]
    assert similar_groups([*prints, None, fingerprint(photograph(0))]) == [(0, 2)]


def test_three_copies_are_one_group_and_same_files_another_kind(tmp_path):
    original = photograph(0)
    for name, image in {"a": original, "b": ImageOps.mirror(original), "c": photograph(1),
                        "d": original.resize((200, 200))}.items():
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "e.png").write_bytes((tmp_path / "c.png").read_bytes())
    (tmp_path / "f.png").write_bytes((tmp_path / "c.png").read_bytes())
    dataset = scan_folder(str(tmp_path), "folder")
    findings = copies(dataset, [measure(image.path) for image in dataset.images])
    assert [(finding.kind, finding.images) for finding in findings] == [
        ("duplicates", (2, 4, 5)), ("near-duplicates", (0, 1, 3))]
    assert "No. 3 = No. 5 = No. 6" in findings[0].text and "No. 1 = No. 2 = No. 4" in findings[1].text


# ---- files ---------------------------------------------------------------------------------------------------------

def test_a_file_is_measured_again_when_it_changed_and_only_then(tmp_path, monkeypatch):
    from finetune.trainers.data.report import image_quality

    opened, read = [], image_quality.read_image
    monkeypatch.setattr(image_quality, "read_image", lambda path: opened.append(path) or read(path))
    first = measured_as(tmp_path, photograph(0, (64, 64)))
    assert measure(str(tmp_path / "image.png")) == first and len(opened) == 1
    assert measured_as(tmp_path, photograph(1, (80, 64))) != first and len(opened) == 2
    (tmp_path / "image.png").write_bytes(b"no image")
    assert measure(str(tmp_path / "image.png")) is None and measure(str(tmp_path / "gone.png")) is None
