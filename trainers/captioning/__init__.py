"""Captioners: models from a local folder that describe images. A file of the name of each kind, imported when needed."""
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

import torch
from PIL import Image

from ..spec.captioning import CaptionerSpec, CaptioningSpec, TaggerSpec

Finding = str | list[list]
"""What a model says of an image, as it is kept: a text, or for taggers a list of [tag, category, probability]."""


class Captioner(Protocol):
    notes: list[str]
    """What people should know about how it runs."""

    def describe(self, images: Sequence[Image.Image]) -> Sequence[Finding]:
        """One finding for each RGB image. What is said of one does not depend on the others, but for rounding."""
        ...

    def close(self):
        """Give its memory back."""


def load(spec: CaptioningSpec, device: torch.device, dtype: torch.dtype) -> Captioner:
    """The model of a spec in memory. Raises UserError when its files do not make one."""
    return import_module(f".{spec.model.kind}", __name__).load(spec.model, spec.folder, device, dtype)


def text_of(model: CaptionerSpec, finding: Finding) -> str:
    """A finding as it is written into a caption, on one line."""
    if isinstance(model, TaggerSpec) and isinstance(finding, list):
        from .tags import tags_of

        return ", ".join(tags_of(model, finding))
    return " ".join(str(finding).split())
