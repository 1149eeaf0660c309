"""BLIP-2: an image encoder that puts an image as some 32 tokens before a language model."""
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration

from ..errors import UserError
from ..spec.captioning import Blip2Spec, CaptionerFolderSpec
from .speaking import Speaker, load_speaker, without_prompt


def load(settings: Blip2Spec, folder: CaptionerFolderSpec, device: torch.device, dtype: torch.dtype) -> Speaker[Blip2Spec]:
    speaker = load_speaker(Blip2ForConditionalGeneration, ask, settings, folder, device, dtype)
    if speaker.processor.num_query_tokens is None or speaker.model.config.image_token_index is None:
        raise UserError(f"The files of {folder.name!r} are older than its layout: processor_config.json lacks "
                        "num_query_tokens, or config.json lacks image_token_index. Download all small files of the model "
                        "again.")
    return speaker


def ask(blip2: Speaker[Blip2Spec], images: Sequence[Image.Image]) -> list[str]:
    prompt = blip2.settings.prompt.strip()
    text = {"text": [prompt] * len(images)} if prompt else {}
    inputs = blip2.ready(blip2.processor(images=list(images), return_tensors="pt", **text))
    tokens = blip2.generate(inputs)
    return blip2.decode(without_prompt(tokens, inputs["input_ids"]) if prompt else tokens)
