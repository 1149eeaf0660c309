"""Pixels of every kind of file, against values that are computed here."""
import threading
from io import BytesIO

import numpy as np
import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.images import image_files
from finetune.trainers.data.images.buckets import bucket_sizes, fit
from finetune.trainers.data.images.colors import hexadecimal
from finetune.trainers.data.images.image_files import crop_pixels, examine_image, pixel_key, read_image
from finetune.trainers.errors import UserError
from PIL import Image, ImageCms
from support.zoo import deep_png

NOISE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def read(path, **options):
    return np.asarray(read_image(path, **options), dtype=int)


# ---- turning -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("orientation, upright", [
    (1, lambda p: p), (2, lambda p: p[:, ::-1]), (3, lambda p: p[::-1, ::-1]), (4, lambda p: p[::-1]),
    (5, lambda p: p.swapaxes(0, 1)), (6, lambda p: np.rot90(p, -1)), (7, lambda p: p[::-1, ::-1].swapaxes(0, 1)),
    (8, lambda p: np.rot90(p)),
])
@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_images_stand_upright(tmp_path, orientation, upright, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(NOISE), exif=exif, **options)
    np.testing.assert_array_equal(read(path), upright(NOISE))
    assert examine_image(path).size == upright(NOISE).shape[1::-1]


# ---- depth ---------------------------------------------------------------------------------------------------------

def test_sixteen_bits_of_gray_are_rounded_and_of_color_cut(tmp_path):
    """Pillow drops the low byte of 16-bit colors; gray comes whole."""
    values = np.random.default_rng(1).integers(0, 65_536, (8, 12), dtype=np.uint16)
    for suffix in ("png", "tiff"):
        gray = read(saved(tmp_path / f"gray.{suffix}", Image.fromarray(values)))
        np.testing.assert_array_equal(gray, np.repeat(np.rint(values / 257).astype(int)[:, :, None], 3, axis=2))
    colors = np.stack([values, values.T.reshape(8, 12), 65_535 - values], axis=-1)
    (tmp_path / "color.png").write_bytes(deep_png(colors))
    np.testing.assert_array_equal(read(tmp_path / "color.png"), colors >> 8)


@pytest.mark.parametrize("largest, white", [(0.5, 1), (1, 1), (200, 255), (255, 255), (40_000, 65_535), (10**6, 2**31 - 1)])
def test_white_of_floating_point_values(tmp_path, largest, white):
    values = np.linspace(-1, largest, 96, dtype=np.float32).reshape(8, 12)
    values[0, 0] = np.nan
    expected = np.rint(np.nan_to_num(values, nan=0).clip(0).astype(np.float64) * 255 / white)
    path = saved(tmp_path / "a.tiff", Image.fromarray(values))
    assert np.abs(read(path)[:, :, 0] - expected).max() <= 1  # float32 against float64 where a value lies in between
    assert "32-bit values" in examine_image(path).remarks[0]


# ---- transparency --------------------------------------------------------------------------------------------------

def test_transparency_shows_the_background(tmp_path):
    alpha = np.random.default_rng(2).integers(0, 256, (8, 12, 1), dtype=np.uint8)
    path = saved(tmp_path / "a.png", Image.fromarray(np.concatenate([NOISE, alpha], axis=2)))
    fraction = alpha / 255
    for background, color in (("#ffffff", (255, 255, 255)), ("#204060", (0x20, 0x40, 0x60))):
        expected = NOISE * fraction + np.array(color) * (1 - fraction)
        assert np.abs(read(path, background=background) - expected).max() <= 1
    assert examine_image(path).transparent


def test_every_kind_of_transparency(tmp_path):
    gray, palette = Image.fromarray(NOISE[:, :, 0]), Image.new("P", (12, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 0])
    kinds = {
        "LA": saved(tmp_path / "la.png", Image.merge("LA", (gray, Image.new("L", gray.size, 0)))),
        "P": saved(tmp_path / "p.png", palette, transparency=1),
        "P, several": saved(tmp_path / "several.png", palette, transparency=b"\xff\0"),
        "GIF": saved(tmp_path / "p.gif", palette, transparency=1),
        "RGB": saved(tmp_path / "rgb.png", Image.new("RGB", (12, 8), (1, 2, 3)), transparency=(1, 2, 3)),
        "16 bits": saved(tmp_path / "deep.png", Image.fromarray(np.full((8, 12), 700, np.uint16)), transparency=700),
        "1 bit": saved(tmp_path / "one.png", Image.new("1", (12, 8), 0), transparency=0),
    }
    for name, path in kinds.items():
        assert (read(path, background="#0a141e") == (10, 20, 30)).all(), name
        assert examine_image(path).transparent, name
    opaque = saved(tmp_path / "opaque.png", Image.new("RGBA", (12, 8), (1, 2, 3, 255)))
    assert not examine_image(opaque).transparent


# ---- color --------------------------------------------------------------------------------------------------------

def linear_profile() -> bytes:
    """sRGB's primaries with the gamma 1: the profile of a file that holds amounts of light. Its curves, all one tag, are
    replaced by the identity (ICC.1:2022, 10.6: a curveType of no entries)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(int.from_bytes(profile[128:132], "big")):
        place = 132 + 12 * entry
        if profile[place:place + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            start = int.from_bytes(profile[place + 4:place + 8], "big")
            profile[start:start + 12] = b"curv" + bytes(8)
            profile[place + 8:place + 12] = (12).to_bytes(4, "big")
    return bytes(profile)


def srgb_of_light(light):
    """IEC 61966-2-1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def test_a_color_profile_becomes_srgb(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(NOISE), icc_profile=linear_profile())
    expected = 255 * srgb_of_light(NOISE / 255)
    assert np.abs(read(path) - expected).max() <= 2 and np.abs(NOISE - expected).max() > 50
    assert examine_image(path).remarks == ()
    clear = Image.fromarray(np.concatenate([NOISE, np.full((8, 12, 1), 255, np.uint8)], axis=2))
    np.testing.assert_array_equal(read(saved(tmp_path / "b.png", clear, icc_profile=linear_profile())), read(path))


def test_profiles_that_say_srgb_change_nothing(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path / "a.png", Image.fromarray(NOISE), icc_profile=profile)
    np.testing.assert_array_equal(read(path), NOISE)


@pytest.mark.parametrize("profile", [b"damaged", linear_profile()[:200], b"\0" * 300])
def test_profiles_that_cannot_be_used_are_told_and_ignored(tmp_path, profile):
    path = saved(tmp_path / "a.png", Image.fromarray(NOISE), icc_profile=profile)
    np.testing.assert_array_equal(read(path), NOISE)
    assert "color profile that cannot be used" in examine_image(path).remarks[0]
    gray = saved(tmp_path / "gray.png", Image.fromarray(NOISE[:, :, 0]), icc_profile=linear_profile())
    np.testing.assert_array_equal(read(gray)[:, :, 0], NOISE[:, :, 0])
    assert "color profile that cannot be used" in examine_image(gray).remarks[0]


@pytest.mark.parametrize("ink, expected", [
    ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)),
    ((0, 128, 255, 0), (255, 127, 0)), ((0, 0, 255, 128), (127, 127, 0)),
])
def test_inks_become_colors(tmp_path, ink, expected):
    """Without a profile, light is what the ink and the black leave: (1 - ink) · (1 - black)."""
    for name in ("a.jpg", "a.tif"):
        path = saved(tmp_path / name, Image.new("CMYK", (16, 16), ink), **{"quality": 100} if name == "a.jpg" else {})
        assert np.abs(read(path)[0, 0] - expected).max() <= 2


def ink_profile(lightness: float) -> bytes:
    """A profile of odd inks: the yellow one is gray with a lightness of 100, and everything else full is black. A table of
    two points for each ink, the last ink changing first (ICC.1:2001-04, 6.5.9, lut8Type)."""
    identity = b"".join((65_536 if place in (0, 4, 8) else 0).to_bytes(4, "big") for place in range(9))
    lights = [255, 0, round(2.55 * lightness)] + [0] * 13
    points = b"".join(bytes([light, 128, 128]) for light in lights)
    table = b"mft1\0\0\0\0\4\3\2\0" + identity + bytes(range(256)) * 4 + points + bytes(range(256)) * 3
    d50 = bytes.fromhex("0000f6d6000100000000d32d")
    header = (144 + len(table)).to_bytes(4, "big") + bytes(4) + b"\x02\x40\0\0prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    start = (header + d50).ljust(128, b"\0")
    return start + (1).to_bytes(4, "big") + b"A2B0" + (144).to_bytes(4, "big") + len(table).to_bytes(4, "big") + table


def test_inks_follow_their_profile(tmp_path):
    """L* = 80 is Y = ((80 + 16) / 116)³ of white (CIE 1976)."""
    expected = 255 * srgb_of_light(np.array(((80 + 16) / 116) ** 3))
    for name in ("a.jpg", "a.tif"):
        options = {"quality": 100} if name == "a.jpg" else {}
        path = saved(tmp_path / name, Image.new("CMYK", (16, 16), (0, 0, 255, 0)), icc_profile=ink_profile(80), **options)
        assert examine_image(path).remarks == () and np.abs(read(path) - expected).max() <= 2
        black = saved(tmp_path / name, Image.new("CMYK", (16, 16), (0, 0, 0, 255)), icc_profile=ink_profile(80), **options)
        assert read(black).max() <= 3
    path = saved(tmp_path / "b.tif", Image.new("CMYK", (16, 16)), icc_profile=linear_profile())
    assert (read(path) == 255).all() and "cannot be used" in examine_image(path).remarks[0]


@pytest.mark.parametrize("typed, color", [
    ("#FFF", "#ffffff"), (" white ", "#ffffff"), ("#102030", "#102030"), ("rgb(1, 2, 3)", "#010203"), ("Gray", "#808080")])
def test_colors_as_people_type_them(typed, color):
    assert hexadecimal(typed) == color


@pytest.mark.parametrize("typed", ["", "whiteish", "#12", "255,255,255"])
def test_what_is_no_color_is_told(typed):
    with pytest.raises(UserError, match="is no color"):
        hexadecimal(typed)


# ---- large images ------------------------------------------------------------------------------------------------

def photograph(size) -> Image.Image:
    """Smooth shapes with a little noise."""
    generator = np.random.default_rng(3)
    shapes = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = generator.integers(-8, 9, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_decoded_smaller_gives_nearly_the_same_crop(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", photograph((2003, 1501)), quality=92, exif=exif)
    size = examine_image(path).size
    assert size == ((2003, 1501) if orientation == 1 else (1501, 2003))
    crop = fit(size, bucket_sizes(256))
    smaller = read_image(path, wanted=crop.resized)
    assert all(2 * goal <= side < 4 * goal for side, goal in zip(smaller.size, crop.resized))
    difference = (crop_pixels(smaller, crop) - crop_pixels(read_image(path), crop)).abs() * 127.5
    assert difference.mean() < 1 and difference.max() < 12


def test_images_of_usual_size_are_read_whole(tmp_path):
    for name in ("a.jpg", "a.png"):
        path = saved(tmp_path / name, photograph((500, 300)))
        np.testing.assert_array_equal(read(path, wanted=(250, 150)), read(path))


def test_large_images_come_smaller_and_one_at_a_time(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", photograph((1000, 600)))
    monkeypatch.setattr(image_files, "LARGE", 10_000)
    assert read_image(path, wanted=(100, 60)).size == (200, 120)
    waiting = threading.Thread(target=read_image, args=(path,))
    with image_files._one_large_image:
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()


def test_the_limit_holds_where_another_program_has_lifted_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(image_files, "MOST_PIXELS", 95)
    path = saved(tmp_path / "a.png", Image.fromarray(NOISE))
    with pytest.raises(UserError, match="a.png: the image cannot be read .it has more than"):
        read_image(path)


# ---- keys and reasons ----------------------------------------------------------------------------------------------

def test_the_key_follows_content_and_background():
    one = specs.DatasetImage(path="here", name="a", caption="a", size=(8, 8), digest="1")
    same = one.model_copy(update={"path": "there", "name": "b", "caption": "b", "repeats": 7, "weight": 2.0})
    assert pixel_key(one) == pixel_key(same)
    for change in ({"digest": "2"}, {"background": "#000000"}):
        assert pixel_key(one.model_copy(update=change)) != pixel_key(one)


def test_avif_is_read_or_the_remedy_is_named(tmp_path, monkeypatch):
    buffer = BytesIO()
    buffer.write(b"\0\0\0\x20ftypavif" + b"\0" * 60)
    (tmp_path / "a.avif").write_bytes(buffer.getvalue())
    monkeypatch.setattr(image_files.features, "check", lambda name: False)
    Image.init()  # else the plugins would register in the list that goes away
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    with pytest.raises(UserError, match="AVIF needs Pillow 11.3 or newer"):
        read_image(tmp_path / "a.avif")


def test_files_that_go_away_are_named(tmp_path):
    with pytest.raises(UserError, match="gone.png: the image cannot be read .No such file or directory"):
        read_image(tmp_path / "gone.png")
