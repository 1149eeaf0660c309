"""A folder of difficult files: what each one is, and what has to become of it.

`make_zoo` writes them and returns what a scan of the folder with its sub-folders must find: {name: Kept} for images that
are used, and {name: words of the note} for what is named. What is in neither must leave no trace.
"""
import json
import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Kept:
    """An image that is used: the color of its upper left pixel on white, how far it may be off, and its caption."""

    size: tuple[int, int] = (12, 8)
    color: tuple[int, int, int] = RED
    tolerance: int = 0
    caption: str = ""


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(color=RED, size=(12, 8), mode="RGB") -> Image.Image:
    return Image.new(mode, size, color)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def deep_png(values: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write: [height, width, 3] of uint16."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def make_zoo(root: Path) -> tuple[dict[str, Kept], dict[str, str]]:
    kept, named = {}, {}

    def keep(name: str, content: bytes, expected=Kept()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        kept[name] = expected

    def name_it(name: str, content: bytes, words: str):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        named[name] = words

    _damaged(name_it)
    _formats(keep, name_it)
    _names(root, keep, named)
    _captions(root, keep, named)
    _folders(root, keep, named)
    return kept, named


def _damaged(name_it):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind, suffix in (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        whole = encoded(noise, kind)
        name_it(f"truncated.{suffix}", whole[:len(whole) // 2], "cannot be read")
    name_it("empty.jpg", b"", "the file is empty")
    name_it("text.png", b"this is a text and no image\n" * 20, "of no image format")
    name_it("vector.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "of no image format")
    name_it("bomb.png", png_header(50_000, 50_000), "more than 178 million pixels")
    name_it("no_pixels.png", png_header(64, 64), "cannot be read")
    name_it("phone.heic", b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC files cannot be read")
    name_it("vector.svg", b"<svg/>", "SVG files cannot be read")
    name_it("zeros.bmp", b"\0" * 1000, "of no image format")


def _formats(keep, name_it):
    keep("png_inside.jpg", encoded(plain(), "PNG"))
    keep("UPPER.PNG", encoded(plain(), "PNG"))
    keep("ink.jpg", encoded(plain((0, 255, 255, 0), mode="CMYK"), "JPEG", quality=100), Kept(tolerance=3))
    keep("ink.tif", encoded(plain((255, 0, 255, 0), mode="CMYK"), "TIFF"), Kept(color=GREEN))
    keep("deep_gray.png", encoded(Image.fromarray(np.full((8, 12), 128 * 257, np.uint16)), "PNG"), Kept(color=(128,) * 3))
    keep("deep_gray.tiff", encoded(Image.fromarray(np.full((8, 12), 60_000, np.uint16)), "TIFF"), Kept(color=(233,) * 3))
    keep("deep_color.png", deep_png(np.full((8, 12, 3), (65_535, 257 * 100, 0), np.uint16)), Kept(color=(255, 100, 0)))
    keep("float.tiff", encoded(Image.fromarray(np.full((8, 12), 0.5, np.float32)), "TIFF"), Kept(color=(128,) * 3))
    holes = np.full((8, 12), np.nan, np.float32)
    keep("not_numbers.tiff", encoded(Image.fromarray(holes), "TIFF"), Kept(color=BLACK))
    keep("integers.tiff", encoded(Image.fromarray(np.full((8, 12), 65_535, np.int32)), "TIFF"), Kept(color=WHITE))
    keep("lab.tiff", encoded(Image.new("LAB", (12, 8), (255, 128, 128)), "TIFF"), Kept(color=WHITE, tolerance=1))
    keep("one.png", encoded(plain(size=(1, 1)), "PNG"), Kept(size=(1, 1)))
    keep("long.png", encoded(plain(size=(4000, 3)), "PNG"), Kept(size=(4000, 3)))
    keep("large.jpg", encoded(plain(GREEN, (6000, 5000)), "JPEG"), Kept((6000, 5000), GREEN, 2))
    frames = [plain(BLUE), plain(GREEN)]
    for suffix, kind, options in (("gif", "GIF", {}), ("webp", "WEBP", {"lossless": True}), ("apng", "PNG", {})):
        keep(f"moving.{suffix}", encoded(plain(), kind, save_all=True, append_images=frames, **options))
    keep("pages.tif", encoded(plain(), "TIFF", save_all=True, append_images=frames))
    keep("camera.mpo", encoded(plain(), "MPO", save_all=True, append_images=frames, quality=100), Kept(tolerance=3))
    exif = Image.Exif()
    exif[0x0112] = 6
    keep("turned.jpg", encoded(plain(), "JPEG", exif=exif, quality=100), Kept((8, 12), tolerance=3))
    keep("bad_exif.jpg", encoded(plain(), "JPEG", exif=b"Exif\0\0garbage", quality=100), Kept(tolerance=3))
    keep("bad_profile.png", encoded(plain(), "PNG", icc_profile=b"no profile"))
    gray_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    keep("foreign_profile.png", encoded(plain(), "PNG", icc_profile=gray_profile))
    palette = plain().quantize(2)
    keep("palette.png", encoded(palette, "PNG"))
    keep("clear_palette.png", encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), Kept(color=WHITE))
    keep("gray_alpha.png", encoded(plain((0, 128), mode="LA"), "PNG"), Kept(color=(127,) * 3))
    keep("clear.png", encoded(plain((255, 0, 0, 0), mode="RGBA"), "PNG"), Kept(color=WHITE))
    keep("one_bit.png", encoded(plain(1, mode="1"), "PNG"), Kept(color=WHITE))
    keep("gray_hole.png", encoded(plain(7, mode="L"), "PNG", transparency=7), Kept(color=WHITE))
    keep("icon.png", encoded(plain(size=(16, 16)), "ICO", sizes=[(16, 16)]), Kept((16, 16)))
    keep("heavy.png", encoded(plain(), "PNG"))
    name_it("heavy-masklabel.png", png_header(50_000, 50_000), "more than 178 million pixels")
    keep("masked.png", encoded(plain(), "PNG"))
    name_it("masked_mask.png", encoded(plain(255, (8, 12), "L"), "PNG"), "another shape")


def _names(root: Path, keep, named):
    for name in ("猫 と 犬.png", "кошка.png", "قطة.png", "🐈‍⬛.png", "it's \"quoted\" & 100%.png", "a.b.c.png",
                 "x" * 240 + ".png"):
        keep(name, encoded(plain(), "PNG"))
    keep("two\nlines.png", encoded(plain(), "PNG"))
    odd = os.fsencode(root) + b"/not_\xff_unicode.png"
    with open(odd, "wb") as file:
        file.write(encoded(plain(), "PNG"))
    named["not_\ufffd_unicode.png"] = "not written in Unicode"
    os.mkfifo(root / "pipe.png")
    named["pipe.png"] = "a pipe or a device"
    os.mkfifo(root / "pipe.txt")
    named["pipe.txt"] = "a pipe or a device"
    (root / "nowhere.png").symlink_to("missing.png")
    named["nowhere.png"] = "leads nowhere"
    (root / "self.png").symlink_to("self.png")
    named["self.png"] = "leads nowhere"
    (root / "zero.png").symlink_to("/dev/zero")
    named["zero.png"] = "a pipe or a device"
    for hidden in (".DS_Store", "._one.png", ".hidden.png", "Thumbs.db", "notes.md"):
        (root / hidden).write_bytes(b"\0\5\x16\7")


def _captions(root: Path, keep, named):
    captions = {
        "marked": (b"\xef\xbb\xbfun caf\xc3\xa9", "un café", ""),
        "wide": ("日本の猫".encode("utf-16"), "日本の猫", ""),
        "wide_big": (b"\xfe\xff" + "a cat".encode("utf-16-be"), "a cat", ""),
        "wide_bare": ("a cat".encode("utf-16-le"), "a cat", ""),
        "western": ("un café “là”".encode("cp1252"), "un café “là”", "Windows-1252"),
        "any_byte": (b"odd \x81 byte", "odd byte", "Windows-1252"),
        "zero": (b"a\0 cat\0", "a cat", "zero bytes"),
        "lines": (b"  a cat\r\n on\ta mat \n", "a cat on a mat", ""),
        "blank": (b" \n", "", "empty"),
        "endless": ("é ".encode() * 500_000, ("é " * 5000).rstrip(), "more than 10000 characters"),
    }
    for stem, (data, caption, words) in captions.items():
        keep(f"caption_{stem}.png", encoded(plain(), "PNG"), Kept(caption=caption))
        (root / f"caption_{stem}.txt").write_bytes(data)
        if words:
            named[f"caption_{stem}.txt"] = words
    keep("both.png", encoded(plain(), "PNG"), Kept(caption="one for both"))
    keep("both.webp", encoded(plain(), "WEBP", lossless=True), Kept(caption="one for both"))
    (root / "both.txt").write_text("one for both")
    keep("second.png", encoded(plain(), "PNG"), Kept(caption="a .caption file"))
    (root / "second.caption").write_text("a .caption file")
    keep("shout.png", encoded(plain(), "PNG"), Kept(caption="upper case suffix"))
    (root / "shout.TXT").write_text("upper case suffix")


def _folders(root: Path, keep, named):
    keep("described/one.png", encoded(plain(), "PNG"), Kept(caption="from metadata"))
    keep("described/deeper/two.png", encoded(plain(), "PNG"), Kept(caption="from above"))
    keep("described/three.png", encoded(plain(), "PNG"), Kept(caption="a file goes first"))
    (root / "described" / "three.txt").write_text("a file goes first")
    entries = [
        {"file_name": "one.png", "text": "from  metadata"}, {"file_name": "deeper/two.png", "caption": "from above"},
        {"file_name": "three.png", "prompt": "not used"}, {"file_name": "../../../etc/passwd.png", "text": "hostile"},
        {"file_name": "/etc/passwd", "text": "hostile"}, {"file_name": "C:\\boot.png", "text": "hostile"},
    ]
    broken = ["{no json", "[1, 2]", '"text"', "null", '{"file_name": "one.png", "text": 5}', '{"file_name": 3, "text": "x"}',
              "[" * 100_000]
    lines = [*broken, *map(json.dumps, entries)]
    (root / "described" / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    named["described/metadata.jsonl: 7 lines"] = "line 1 for example"
    named["described/metadata.jsonl has captions of 3 images"] = "etc/passwd"
    keep("directory.png/inside.png", encoded(plain(), "PNG"))
    (root / "loop").mkdir()
    (root / "loop" / "back").symlink_to("..")
    named["loop/back/"] = "already read"
    keep("10_ohwx cat/one.png", encoded(plain(), "PNG"), Kept(caption="ohwx cat"))
    keep("10_/one.png", encoded(plain(), "PNG"))
    keep("10_ohwx cat/masks_too.png", encoded(plain(), "PNG"), Kept(caption="ohwx cat"))
    (root / "10_ohwx cat" / "masks").mkdir()
    (root / "10_ohwx cat" / "masks" / "masks_too.png").write_bytes(encoded(plain(255, mode="L"), "PNG"))
    for folder in ("0_never", "-3_never"):
        (root / folder).mkdir()
        (root / folder / "one.png").write_bytes(encoded(plain(), "PNG"))
        named[f"{folder}/"] = "repeats"
