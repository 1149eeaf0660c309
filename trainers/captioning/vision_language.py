"""Vision-language models: whatever transformers knows as an image-text-to-text model with a chat template."""
import inspect
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..errors import UserError
from ..spec.captioning import CaptionerFolderSpec, VisionLanguageSpec
from .model_folders import read_config
from .speaking import Processor, Speaker, load_speaker, without_prompt

THOUGHT_ENDS = "</think>"
"""Before it stands what a reasoning model thought, behind it what it says."""


def load(settings: VisionLanguageSpec, folder: CaptionerFolderSpec, device: torch.device,
         dtype: torch.dtype) -> Speaker[VisionLanguageSpec]:
    model_type = (read_config(Path(folder.path) / "config.json") or {}).get("model_type")
    if model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(f"{folder.name!r} is a model of the type {model_type!r}, which transformers "
                        f"{transformers.__version__} does not know as one that reads images and writes text. Choose "
                        "another model, or update transformers in the Python that runs ComfyUI.")
    speaker = load_speaker(AutoModelForImageTextToText, ask, settings, folder, device, dtype)
    # A template for texts alone writes the parts of a message down as they look in Python.
    if "'type'" in speaker.processor.apply_chat_template(
            conversation(settings, Image.new("RGB", (64, 64))), add_generation_prompt=True, tokenize=False):
        raise UserError(f"The chat template of {folder.name!r} takes texts alone and leaves no place for an image. "
                        "Choose a model whose template takes images, for example of Qwen2.5-VL.")
    tokenizer = speaker.processor.tokenizer
    tokenizer.padding_side = "left"  # an answer follows its prompt directly, also where the prompt is shorter than others
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return speaker


def ask(model: Speaker[VisionLanguageSpec], images: Sequence[Image.Image]) -> list[str]:
    conversations = [conversation(model.settings, shrunk(image, model.settings.maximum_side)) for image in images]
    inputs = model.ready(model.processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        **padding(model.processor)))
    texts = model.decode(without_prompt(model.generate(inputs), inputs["input_ids"]))
    return [text.rpartition(THOUGHT_ENDS)[2] for text in texts]


def padding(processor: Processor) -> dict:
    """How padding is asked for: transformers 5 wants it in a dictionary of its own."""
    own = "processor_kwargs" in inspect.signature(processor.apply_chat_template).parameters
    return {"processor_kwargs": {"padding": True}} if own else {"padding": True}


def conversation(settings: VisionLanguageSpec, image: Image.Image) -> list[dict]:
    system = [{"role": "system", "content": [{"type": "text", "text": settings.system}]}] if settings.system.strip() else []
    return [*system, {"role": "user", "content": [
        {"type": "image", "image": image}, {"type": "text", "text": settings.instruction}]}]


def shrunk(image: Image.Image, maximum_side: int) -> Image.Image:
    """At most `maximum_side` pixels wide and high, in its proportions; 0: as it is."""
    longest = max(image.size)
    if not maximum_side or longest <= maximum_side:
        return image
    width, height = (max(1, round(side * maximum_side / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)
