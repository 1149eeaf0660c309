"""Captions as text: where they come from and where the trigger word goes."""
from pathlib import Path

from ...words import holds
from .caption_files import read_caption_file

CAPTION_SUFFIXES = (".txt", ".caption")


def read_caption(image: Path) -> str | None:
    """The caption beside an image, on one line; None when there is no caption file. Odd bytes do not stop a run."""
    for suffix in CAPTION_SUFFIXES:
        file = image.with_suffix(suffix)
        if file.is_file():
            return read_caption_file(file)[0]
    return None


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word in front, unless it already holds it."""
    if not trigger.strip() or holds(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger
