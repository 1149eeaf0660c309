"""What captioners share that answer in sentences: loading with transformers, and generating text."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature

from ..errors import UserError, reason_of
from ..spec.captioning import CaptionerFolderSpec, SpeakerSpec
from .devices import is_out_of_memory
from .model_folders import KINDS


class Model(Protocol):
    """What is asked of a model of transformers that writes text."""

    config: Any
    """Of a class of its own for each kind of model."""
    device: torch.device

    def generate(self, **inputs: Any) -> Tensor: ...


class Processor(Protocol):
    """What is asked of a processor of transformers, by all kinds or by some: its attributes are set when it is made."""

    tokenizer: Any
    num_query_tokens: int | None
    """BLIP-2: tokens that an image becomes."""
    post_processor_config: dict | None
    """Florence-2: how answers are taken apart."""

    def __call__(self, **inputs: Any) -> BatchFeature: ...

    def batch_decode(self, tokens: Tensor, **options: Any) -> list[str]: ...

    def apply_chat_template(self, conversation: Sequence, **options: Any) -> Any: ...

    def post_process_generation(self, text: str, task: str, image_size: tuple[int, int]) -> dict[str, Any]: ...


Settings = TypeVar("Settings", bound=SpeakerSpec)


@dataclass
class Speaker(Generic[Settings]):
    """A model with its processor, and how its kind is asked: `ask(speaker, images)` returns a text for each."""

    model: Model
    processor: Processor
    settings: Settings
    dtype: torch.dtype
    ask: Callable[["Speaker[Settings]", Sequence[Image.Image]], list[str]]
    notes: list[str] = field(default_factory=list)

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        with torch.inference_mode():
            return [text.strip() for text in self.ask(self, images)]

    def close(self):
        del self.model

    def ready(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a processor gives, on the model's device, numbers of images in its precision."""
        return {name: tensor.to(self.model.device, self.dtype if tensor.is_floating_point() else None)
                for name, tensor in inputs.items()}

    def generate(self, inputs: dict[str, Tensor]) -> Tensor:
        """Token ids [batch, length], with those of the prompt where the model repeats it."""
        decoding, options = self.settings.decoding, {}
        if decoding.repetition_penalty > 1:
            options["repetition_penalty"] = decoding.repetition_penalty
        if decoding.temperature > 0:  # top_k 0: whatever the model's own settings say, top_p alone decides
            options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        return self.model.generate(**inputs, max_new_tokens=self.room_for(inputs), num_beams=decoding.beams,
                                   do_sample=decoding.temperature > 0, **options)

    def room_for(self, inputs: dict[str, Tensor]) -> int:
        """How many tokens may be generated: those asked for, as far as the model has positions for them.

        A table of positions is read behind its end otherwise (BLIP, GIT, OPT, BART), which ends in an error.
        """
        wanted = self.settings.decoding.maximum_tokens
        positions = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if positions is None:  # T5 has relative positions and no end
            return wanted
        prompt = None if getattr(self.model.config, "is_encoder_decoder", False) else inputs.get("input_ids")
        if prompt is None:  # the token to begin with, behind those of the image in BLIP-2
            used = 1 + getattr(self.model.config, "num_query_tokens", 0)
        else:
            used = prompt.shape[1]
        if used >= positions:
            raise UserError(f"The prompt has {used} tokens and this model reads {positions}. Shorten the prompt.")
        if wanted > positions - used:
            note = f"This model writes at most {positions - used} tokens, fewer than the {wanted} of maximum_tokens."
            if note not in self.notes:
                self.notes.append(note)
        return min(wanted, positions - used)

    def decode(self, tokens: Tensor) -> list[str]:
        return self.processor.batch_decode(tokens, skip_special_tokens=True)


def load_speaker(model_class: Any, ask: Callable[[Speaker[Settings], Sequence[Image.Image]], list[str]], settings: Settings,
                 folder: CaptionerFolderSpec, device: torch.device, dtype: torch.dtype) -> Speaker[Settings]:
    """A model and its processor from a local folder. Weights are tensors only, and no code of the folder runs.

    Raises UserError when the files do not make such a model, or leave some of its weights open.
    """
    name, title = folder.name, KINDS[settings.kind].title
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(folder.path, **options)
        model, found = model_class.from_pretrained(
            folder.path, weights_only=True, torch_dtype=dtype, output_loading_info=True, **options)
    except Exception as problem:  # every model and every library has errors of its own
        if is_out_of_memory(problem):
            raise
        raise UserError(f"{name!r} could not be loaded as a {title} model: {reason_of(problem)}") from problem
    missing = sorted(found["missing_keys"])
    if missing:  # transformers draws them at random and goes on
        raise UserError(f"The weights of {name!r} lack {len(missing)} tensors of a {title} model, for example "
                        f"{missing[0]}. Download the model again.")
    return Speaker(model.to(device).requires_grad_(False).eval(), processor, settings, dtype, ask)


def without_prompt(tokens: Tensor, prompt: Tensor) -> Tensor:
    """Answers [batch, length] without the tokens of the prompt in front, for models that repeat it."""
    length = prompt.shape[1]
    return tokens[:, length:] if torch.equal(tokens[:, :length], prompt) else tokens
