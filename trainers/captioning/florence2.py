"""Florence-2: fixed instructions, whose answers its processor takes apart."""
from collections.abc import Sequence

import torch
import transformers
from PIL import Image

from ..errors import UserError
from ..spec.captioning import CaptionerFolderSpec, Florence2Spec
from .speaking import Speaker, load_speaker

TASKS = {"caption": "<CAPTION>", "detailed caption": "<DETAILED_CAPTION>", "more detailed caption":
         "<MORE_DETAILED_CAPTION>", "objects": "<OD>", "text in the image": "<OCR>"}


def load(settings: Florence2Spec, folder: CaptionerFolderSpec, device: torch.device,
         dtype: torch.dtype) -> Speaker[Florence2Spec]:
    if not hasattr(transformers, "Florence2ForConditionalGeneration"):
        raise UserError(f"Florence-2 needs transformers 4.56 or newer, and {transformers.__version__} is installed. Update "
                        "transformers in the Python that runs ComfyUI, or use another captioner.")
    speaker = load_speaker(transformers.Florence2ForConditionalGeneration, ask, settings, folder, device, dtype)
    if not {"pure_text", "description_with_bboxes"} <= (speaker.processor.post_processor_config or {}).keys():
        raise UserError(f"{folder.name!r} does not say how answers are read: processor_config.json is missing or lacks "
                        "post_processor_config. Download all small files of the model again.")
    return speaker


def ask(florence2: Speaker[Florence2Spec], images: Sequence[Image.Image]) -> list[str]:
    task = TASKS[florence2.settings.instruction]
    inputs = florence2.processor(images=list(images), text=[task] * len(images), return_tensors="pt")
    raw = florence2.processor.batch_decode(florence2.generate(florence2.ready(inputs)), skip_special_tokens=False)
    return [written(answer(florence2, text, task, image)) for text, image in zip(raw, images, strict=True)]


def answer(florence2: Speaker[Florence2Spec], text: str, task: str, image: Image.Image) -> str | dict:
    """The processor's reading of one answer: a text, or boxes with labels."""
    pad = florence2.processor.tokenizer.pad_token  # ends the shorter answers of a batch
    return florence2.processor.post_process_generation(text=text.replace(pad, ""), task=task, image_size=image.size)[task]


def written(answer: str | dict) -> str:
    """Labels of boxes as a list, each once."""
    return answer if isinstance(answer, str) else ", ".join(dict.fromkeys(label.strip() for label in answer["labels"]))
