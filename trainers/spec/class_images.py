"""Class images that the base generates itself, as data."""
from typing import Literal

from pydantic import Field, field_validator, model_validator

from . import BaseModelSpec, FolderSpec
from .base_model import check_resolution
from .part import MAXIMUM_SEED, Part, number
from .settings import MemorySpec


class ClassImagesSpec(Part):
    """What the base shall generate for prior preservation (Ruiz et al. 2022, arXiv:2208.12242, section 3.2).

    Image i starts from noise of (image_seed, i), so more of them is the same ones and some new ones.
    """

    task: Literal["class_images"] = "class_images"
    version: Literal[1] = 1
    base: BaseModelSpec
    prompt: str = Field(max_length=2000)
    negative: str = Field(default="", max_length=2000)
    count: int = Field(default=200, ge=1, le=100_000)
    resolution: int = Field(default=512, ge=64, le=4096, json_schema_extra={"step": 8})
    sampler_steps: int = Field(default=0, ge=0, le=200)
    guidance: float = number(0.0, ge=0, le=30, step=0.5)
    """0: what is usual for the base, of the steps too."""
    image_seed: int = Field(default=0, ge=0, le=MAXIMUM_SEED)
    batch_size: int = Field(default=4, ge=1, le=256)
    """Images sampled at once. It changes them by no more than rounding."""
    folders: FolderSpec
    device: str = "auto"
    memory: MemorySpec = MemorySpec()
    """Only its precision counts here."""

    @model_validator(mode="after")
    def _resolution_fits(self):
        check_resolution(self.base, self.resolution)
        return self

    @field_validator("prompt", "negative")
    @classmethod
    def _one_line(cls, text: str) -> str:
        """As a caption file is read: line breaks are spaces."""
        return " ".join(text.split())

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, prompt: str) -> str:
        if not prompt:
            raise ValueError("the prompt is empty; name the class, for example: a photo of a dog")
        return prompt
