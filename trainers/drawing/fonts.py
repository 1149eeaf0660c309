"""Text on images in any script: the font that comes with Pillow is Latin, others are looked for on the computer."""
from collections.abc import Sequence
from functools import lru_cache

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
"""The second where Pillow lacks FreeType."""
Color = tuple[int, int, int]
# Fonts of Windows, macOS and Linux by file name, which Pillow looks for in the system's folders; many scripts first.
SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "DroidSansFallbackFull.ttf", "wqy-microhei.ttc",
    "Arial Unicode.ttf", "ARIALUNI.TTF", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "Hiragino Sans GB.ttc", "PingFang.ttc",
    "AppleSDGothicNeo.ttc", "segoeui.ttf", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf",
)
LONGEST = 2000
"""Characters that are looked at: no line of an image holds as many."""
MISSING = "□"
PLAIN = str.maketrans({"×": "x", "’": "'", "‘": "'", "“": '"', "”": '"'})
"""For signs that are no reason to take another font."""


def font_and_text(text: str, size: int) -> tuple[Font, str]:
    """A font that has all letters of `text`, and the text; else the font with the most of them, and the text with a box for
    each letter that it lacks."""
    text = drawable(text).translate(PLAIN)
    best, lacking = _fonts(size)[0], set(text)
    for font in _fonts(size):
        missing = {letter for letter in set(text) if not _has(font, letter)}
        if len(missing) < len(lacking) or not missing:
            best, lacking = font, missing
        if not missing:
            break
    box = MISSING if _has(best, MISSING) else "?"
    return best, "".join(box if letter in lacking else letter for letter in text)


def drawable(text: str) -> str:
    """Text as one line without signs that only steer others, such as those that turn the reading direction: Pillow measures
    no line breaks."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "" for sign in text)


def fitted(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float, ellipsis: str = "…") -> str:
    """The text as one line, cut where it is wider than `width` pixels."""
    text = drawable(text[:LONGEST])
    if draw.textlength(text, font) <= width:
        return text
    few, many = 0, len(text)
    while many - few > 1:
        middle = (few + many) // 2
        if draw.textlength(text[:middle].rstrip() + ellipsis, font) <= width:
            few = middle
        else:
            many = middle
    return text[:few].rstrip() + ellipsis


@lru_cache(maxsize=8)
def _fonts(size: int) -> Sequence[Font]:
    """The pack's usual font, then those of the system that are there."""
    found = [ImageFont.load_default(size)]
    for name in SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return found


@lru_cache(maxsize=20_000)
def _has(font: Font, letter: str) -> bool:
    """Whether a font draws a letter otherwise than one that no font has."""
    if letter.isspace() or letter.isascii():
        return True
    # Masks are sequences of bytes, which Pillow's annotations do not say.
    return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))  # pyright: ignore[reportArgumentType]
