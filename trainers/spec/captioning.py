"""Captioning as data: which model describes which images, and how."""
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from . import FolderSpec
from .dataset import DatasetSpec
from .part import MAXIMUM_SEED, Part


class DecodingSpec(Part):
    """How a language model chooses its words. Temperature 0 always takes the likeliest; above it words are picked from
    (caption_seed, image)."""

    maximum_tokens: int = Field(default=60, ge=1, le=4096)
    beams: int = Field(default=1, ge=1, le=16)
    """Sentences that are followed at once, of which the likeliest is kept."""
    repetition_penalty: float = Field(default=1.0, ge=1, le=3)
    """1 leaves it to the model's own settings (Keskar et al. 2019, arXiv:1909.05858, section 4.1: 1.2)."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=0.9, gt=0, le=1)
    """Draw from the likeliest words that together have this probability (Holtzman et al. 2019, arXiv:1904.09751)."""
    caption_seed: int = Field(default=0, ge=0, le=MAXIMUM_SEED)

    @model_validator(mode="after")
    def _beams_or_draws(self):
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(f"beams is {self.beams} and temperature {self.temperature:g}: one looks for the likeliest "
                             "sentence, the other picks at random. Set beams to 1 or temperature to 0")
        return self


class SpeakingSpec(Part):
    """What models have in common that answer in sentences."""

    decoding: DecodingSpec = DecodingSpec()

    def decisive(self) -> dict:
        """The settings on which the model's own answer depends; others only change how it is written down."""
        settings = self.model_dump(mode="json")
        if not self.decoding.temperature:
            del settings["decoding"]["top_p"], settings["decoding"]["caption_seed"]
        return settings


class BlipSpec(SpeakingSpec):
    """BLIP (Li et al. 2022, arXiv:2201.12086)."""

    kind: Literal["blip"] = "blip"
    prompt: str = Field(default="", max_length=500)
    """How every caption begins."""


class Blip2Spec(SpeakingSpec):
    """BLIP-2 (Li et al. 2023, arXiv:2301.12597)."""

    kind: Literal["blip2"] = "blip2"
    prompt: str = Field(default="", max_length=2000)
    """What is asked, for example "Question: what is shown? Answer:"; empty: a caption."""


class GitSpec(SpeakingSpec):
    """GIT (Wang et al. 2022, arXiv:2205.14100)."""

    kind: Literal["git"] = "git"
    prompt: str = Field(default="", max_length=500)
    """How every caption begins."""


class Florence2Spec(SpeakingSpec):
    """Florence-2 (Xiao et al. 2023, arXiv:2311.06242), which knows fixed instructions."""

    kind: Literal["florence2"] = "florence2"
    instruction: Literal["caption", "detailed caption", "more detailed caption", "objects", "text in the image"] = (
        "detailed caption")


class VisionLanguageSpec(SpeakingSpec):
    """Any image-text-to-text model of transformers that takes a conversation."""

    kind: Literal["vision_language"] = "vision_language"
    instruction: str = Field(min_length=1, max_length=20_000)
    system: str = Field(default="", max_length=20_000)
    """What the model is told before the conversation."""
    maximum_side: int = Field(default=1024, ge=0, le=8192)
    """Larger images are shrunk to this side in pixels before the model sees them; 0: none is."""

    @field_validator("instruction")
    @classmethod
    def _says_something(cls, instruction: str) -> str:
        if not instruction.strip():
            raise ValueError("the instruction is empty; say what the model shall write, for example: Describe this "
                             "image in one sentence")
        return instruction


class TaggerSpec(Part):
    """Taggers with Danbooru's vocabulary. A tag is written when its probability reaches the threshold of its category."""

    kind: Literal["tagger"] = "tagger"
    general_threshold: float = Field(default=0.35, ge=0.05, le=1)
    character_threshold: float = Field(default=0.85, ge=0.05, le=1)
    general: bool = True
    characters: bool = True
    rating: bool = False
    """Write the likeliest rating last, as "rating:general"."""
    underscores: bool = False
    """Keep underscores; else they become spaces, but in faces such as ^_^."""
    escape: bool = False
    """Write parentheses as \\( and \\), as prompts need them."""
    exclude: tuple[str, ...] = ()
    """Tags that are never written, with underscores or spaces."""
    order: Literal["characters first", "probability", "alphabet"] = "characters first"
    most: int = Field(default=0, ge=0, le=1000)
    """The most tags for one image, the likeliest; 0: all."""

    @model_validator(mode="after")
    def _something_is_wanted(self):
        if not (self.general or self.characters or self.rating):
            raise ValueError("general, characters and rating are all off, so that no tag is left; switch one on")
        return self

    def decisive(self) -> dict:
        """Nothing: a tagger always says how probable every tag is."""
        return {"kind": self.kind}


SpeakerSpec = BlipSpec | Blip2Spec | GitSpec | Florence2Spec | VisionLanguageSpec
CaptionerSpec = Annotated[SpeakerSpec | TaggerSpec, Field(discriminator="kind")]


class CaptionerFolderSpec(Part):
    """The folder of a caption model. `fingerprint` changes when one of its files does; `name` is what people see."""

    name: str
    path: str
    fingerprint: str


class CaptioningSpec(Part):
    """Images that shall be described. Their captions are not looked at."""

    task: Literal["captioning"] = "captioning"
    version: Literal[1] = 1
    model: CaptionerSpec
    folder: CaptionerFolderSpec
    dataset: DatasetSpec
    batch_size: int = Field(default=8, ge=1, le=256)
    """Images described at once. It changes nothing but rounding."""
    folders: FolderSpec
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
