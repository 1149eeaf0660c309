"""BLIP: an image encoder with a small text decoder, which can go on with the beginning of a caption."""
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import BlipForConditionalGeneration

from ..spec.captioning import BlipSpec, CaptionerFolderSpec
from .speaking import Speaker, load_speaker


def load(settings: BlipSpec, folder: CaptionerFolderSpec, device: torch.device, dtype: torch.dtype) -> Speaker[BlipSpec]:
    return load_speaker(BlipForConditionalGeneration, ask, settings, folder, device, dtype)


def ask(blip: Speaker[BlipSpec], images: Sequence[Image.Image]) -> list[str]:
    prompt = blip.settings.prompt.strip()
    text = {"text": [prompt] * len(images)} if prompt else {}
    inputs = blip.processor(images=list(images), return_tensors="pt", **text)
    return blip.decode(blip.generate(blip.ready(inputs)))
