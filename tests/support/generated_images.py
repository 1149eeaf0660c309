"""Images with the statistics of photographs, and drawings on white of different letters."""
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def photograph(number: int, size=(384, 384)) -> Image.Image:
    """Colored noise whose amplitude falls with the frequency as that of natural images (about 1/f)."""
    draw, side = np.random.default_rng(number), 384
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = np.inf
    channels = np.real(np.fft.ifft2(np.fft.fft2(draw.standard_normal((3, side, side))) / frequency**1.2))
    channels /= channels.std(axis=(1, 2), keepdims=True)
    mixed = 128 + 50 * (0.8 * channels[:1] + 0.4 * channels)
    return Image.fromarray(mixed.transpose(1, 2, 0).clip(0, 255).astype(np.uint8)).resize(size)


def drawing(number: int, side: int = 256) -> Image.Image:
    """A black shape on white, of which there are many."""
    draw, image = np.random.default_rng(number), Image.new("RGB", (side, side), "white")
    color = tuple(int(each) for each in draw.integers(0, 200, 3))
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 26]
    font = ImageFont.load_default(round(side * 0.9))
    ImageDraw.Draw(image).text((side / 2, side / 2), letter, color, font, anchor="mm")
    return image


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after it was a JPEG of that quality."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")
