"""Taggers by onnxruntime: SmilingWolf's (WD14 and later) and DeepDanbooru.

Both take square images as float32 [batch, side, side, 3] and return a probability for every tag.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ..errors import UserError, reason_of
from ..spec.captioning import CaptionerFolderSpec, TaggerSpec
from .model_folders import onnx_file
from .tags import Tag, read_tags

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FLOOR = 0.02
"""Less probable tags are not kept; thresholds begin above it."""
PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider")


@dataclass
class Tagger:
    session: "InferenceSession"
    tags: list[Tag]
    prepare: Callable[[Image.Image, int], np.ndarray]
    notes: list[str] = field(default_factory=list)

    def describe(self, images: Sequence[Image.Image]) -> list[list]:
        fixed, side = self.session.get_inputs()[0].shape[:2]
        pixels = np.stack([self.prepare(image, side) for image in images])
        step = fixed if isinstance(fixed, int) else len(pixels)
        found = np.concatenate([self._run(pixels[start:start + step], step) for start in range(0, len(pixels), step)])
        return [self._finding(probabilities) for probabilities in found]

    def _run(self, pixels: np.ndarray, count: int) -> np.ndarray:
        """Probabilities [images, tags] of at most `count` images. A model exported for a certain number of them gets
        the last one more often, and those answers are dropped."""
        filled = np.concatenate([pixels, np.repeat(pixels[-1:], count - len(pixels), axis=0)])
        return np.asarray(self.session.run(None, {self.session.get_inputs()[0].name: filled})[0])[:len(pixels)]

    def _finding(self, probabilities: np.ndarray) -> list:
        if not (np.isfinite(probabilities).all() and probabilities.min() >= 0 and probabilities.max() <= 1):
            raise UserError("The tagger's numbers are no probabilities: they are not all between 0 and 1. Choose a tagger "
                            "of SmilingWolf's or DeepDanbooru's kind.")
        return [[tag.name, tag.category, round(float(probability), 6)]
                for tag, probability in zip(self.tags, probabilities, strict=True)
                if probability >= FLOOR or tag.category == "rating"]

    def close(self):
        del self.session


def load(settings: TaggerSpec, model: CaptionerFolderSpec, device: torch.device, dtype: torch.dtype) -> Tagger:
    import onnxruntime

    folder, name = Path(model.path), model.name
    tags, file = read_tags(folder, name), onnx_file(folder)
    if file is None:
        raise UserError(f"{name!r} has no model.onnx any more. Put the file back, or choose another tagger.")
    if device.type == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries are torch's own
    wanted = [each for each in PROVIDERS if each in onnxruntime.get_available_providers() and device.type != "cpu"]
    try:
        session = onnxruntime.InferenceSession(file, providers=[*wanted, "CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime has a type of error for every kind of damage
        raise UserError(f"{name!r} could not be loaded as a tagger: {reason_of(problem)}") from problem
    _require_shapes(session, len(tags), name)
    prepare = prepare_smilingwolf if (folder / "selected_tags.csv").is_file() else prepare_deepdanbooru
    tagger = Tagger(session, tags, prepare)
    if device.type == "cuda" and session.get_providers() == ["CPUExecutionProvider"]:
        tagger.notes.append("the tagger runs on the CPU: onnxruntime is installed without CUDA; onnxruntime-gpu has it")
    return tagger


def _require_shapes(session: "InferenceSession", tags: int, name: str):
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape, count = inputs[0].shape, outputs[0].shape[-1]
    if len(inputs) != 1 or len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int) or shape[1] != shape[2]:
        raise UserError(f"{name!r} takes images as {shape}, and this node gives [batch, side, side, 3], as SmilingWolf's "
                        "taggers and DeepDanbooru do. Choose one of those.")
    if isinstance(count, int) and count != tags:
        raise UserError(f"{name!r} does not fit together: the model knows {count} tags, and its list names {tags}. Download "
                        "both files from the same page.")


def prepare_smilingwolf(image: Image.Image, side: int) -> np.ndarray:
    """Padded to a square with white, bicubic, BGR in 0…255: float32 [side, side, 3]. As in the author's demo
    (huggingface.co/spaces/SmilingWolf/wd-tagger)."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    if longest != side:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(square, np.float32)[:, :, ::-1]


def prepare_deepdanbooru(image: Image.Image, side: int) -> np.ndarray:
    """Fitted into a square whose rest repeats the image's edges, RGB in 0…1: float32 [side, side, 3]. As
    github.com/KichangKim/DeepDanbooru prepares images, resized by area."""
    factor = side / max(image.size)
    width, height = (max(1, min(side, round(length * factor))) for length in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float32) / 255
    rest = [(side - length, (side - length) // 2) for length in pixels.shape[:2]]
    return np.pad(pixels, [*((first, whole - first) for whole, first in rest), (0, 0)], mode="edge")
