"""Whatever an image file holds → 8-bit sRGB, with its transparency: depths, palettes, inks and color profiles.

Pillow itself reads 16-bit RGB, RGBA and gray-with-alpha files at 8 bits: it drops the low byte, which makes a value at most
one step too dark. 16-bit gray, 32-bit and floating-point files come at their full depth and are scaled here.
"""
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, ImageColor

from ...errors import UserError

DAMAGED_PROFILE = "have a color profile that cannot be used; sRGB is taken instead"
PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
"""Pillow's mode → the color space that the profile of such an image names (ICC.1:2022, table 19)."""
WHITES = {"I": (65535.0, 2.0**31 - 1), "F": (1.0, 255.0, 65535.0, 2.0**31 - 1)}
"""Mode → what white may be in a file of 32-bit or floating-point values."""
UNCERTAIN_WHITE = "hold 32-bit values, of which the largest decides what is taken as white (1, 255, 65535 or 2³¹)"
BLACK_POINT_COMPENSATION = 0x2000
"""littlecms' flag; Pillow's name for it is newer than the oldest Pillow."""
DISTANCE = 1
"""Profiles that change no color by more than this, of 255, are sRGB under another name."""


def hexadecimal(color: str) -> str:
    """A color as people type it (#fff, #FFFFFF, white, rgb(255, 255, 255)) → #rrggbb. Raises UserError."""
    try:
        red, green, blue = ImageColor.getrgb(color.strip())[:3]
    except ValueError:
        raise UserError(f"{color!r} is no color. Write it as #rrggbb, for example #ffffff for white or #808080 for gray, "
                        "or by its English name.") from None
    return f"#{red:02x}{green:02x}{blue:02x}"


def eight_bits(image: Image.Image) -> Image.Image:
    """Deeper gray images as "L", or as "LA" where one of their values stands for transparency; others as they are.

    16-bit values are divided by 257. 32-bit and floating-point values have no fixed white: it is the smallest of `WHITES`
    that none of them exceeds. What is negative or not a number is black.
    """
    deep = image.mode.startswith("I;16")
    if not deep and image.mode not in WHITES:
        return image
    values, clear = np.asarray(image), image.info.get("transparency")
    alpha = None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    whites = (65535.0,) if deep else WHITES[image.mode]
    values = np.nan_to_num(values.astype(np.float32), nan=0, neginf=0).clip(0, whites[-1])
    white = next(each for each in whites if values.max() <= np.float32(each))
    gray = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    gray = Image.merge("LA", (gray, alpha)) if alpha else gray
    gray.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return gray


def to_srgb(image: Image.Image) -> Image.Image:
    """An 8-bit image of any mode as "RGB", or as "RGBA" where it has transparency. A color profile that cannot be used
    counts as none: then gray and RGB are sRGB already, and inks become colors by Pillow's plain formula."""
    profile = image.info.get("icc_profile")
    alpha, mode = opacity(image), _color_mode(image)
    # By way of "RGBA", a palette keeps the colors of its transparent entries.
    colors = image.convert("RGBA") if alpha and image.mode not in ("LA", "RGBA") else image
    colors = colors if colors.mode == mode else colors.convert(mode)
    if profile or colors.mode == "LAB":
        try:
            if transform := _transform(profile, colors.mode):
                colors = _applied(colors, transform)
        except (ImageCms.PyCMSError, ImportError):
            pass
    rgb = colors if colors.mode == "RGB" else colors.convert("RGB")
    if alpha:
        rgb.putalpha(alpha)
    return rgb


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """The image after the transform; Pillow returns None only where it changes the image itself."""
    return ImageCms.applyTransform(image, transform) or image


def profile_fits(image: Image.Image) -> bool:
    """Whether the image's color profile, if it has one, can be used."""
    profile = image.info.get("icc_profile")
    try:
        if profile:
            _transform(profile, _color_mode(image))
    except (ImageCms.PyCMSError, ImportError):
        return False
    return True


def _color_mode(image: Image.Image) -> str:
    """The mode of an image's colors, without palette and transparency."""
    if image.mode in ("1", "L", "LA", "La"):
        return "L"
    return image.mode if image.mode in PROFILE_SPACES else "RGB"


def opacity(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel of an 8-bit image is, as "L"; None where it has no transparency."""
    if not image.has_transparency_data:
        return None
    return (image if image.mode in ("LA", "RGBA") else image.convert("RGBA")).getchannel("A")


@lru_cache(maxsize=32)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where that changes nothing. Without a profile "LAB" is CIE Lab at D50.

    Raises PyCMSError for a profile that is damaged or does not fit the mode, ImportError where Pillow lacks littlecms.
    Relative colorimetric with black point compensation is what photo editors use to show an image.
    """
    source = (ImageCms.getOpenProfile(BytesIO(profile)) if profile else
              ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    space = source.profile.xcolor_space.strip()  # pyright: ignore[reportAttributeAccessIssue]  Pillow has it as a file
    if space != PROFILE_SPACES[mode]:
        raise ImageCms.PyCMSError(f"a profile of {space} on an image of {mode}")
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC,
        BLACK_POINT_COMPENSATION)  # pyright: ignore[reportArgumentType]  Pillow takes any int
    if mode not in ("L", "RGB"):
        return transform
    levels = np.linspace(0, 255, 18, dtype=np.uint8)
    grid = levels[:, None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(18, -1, 3)
    plain = Image.fromarray(grid)
    changed = np.asarray(_applied(plain, transform), dtype=int)
    return transform if np.abs(changed - np.asarray(plain.convert("RGB"), dtype=int)).max() > DISTANCE else None
