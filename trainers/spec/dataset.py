"""Datasets as data: which images, with which captions, and what varies from step to step."""
from pydantic import Field, model_validator

from .part import Part

CAPTION = "{caption}"
"""Where the caption stands in a template."""


class CaptionVariationSpec(Part):
    """What happens to an image's caption each time it comes up, a function of (training seed, step, sample)."""

    shuffle: bool = False
    """Put the tags of the caption into another order."""
    keep_tags: int = Field(default=0, ge=0, le=1000)
    """How many tags at the front stay where they are and are never left out: the trigger word."""
    tag_dropout: float = Field(default=0.0, ge=0, le=1)
    """Fraction of the tags behind those that is left out."""
    separator: str = Field(default=",", min_length=1, max_length=8)
    """What stands between tags."""
    templates: tuple[str, ...] = ()
    """Sentences with {caption} in them, of which one is picked; empty: the caption itself."""

    @model_validator(mode="after")
    def _templates_hold_the_caption(self):
        for template in self.templates:
            if CAPTION not in template:
                raise ValueError(f"the template {template[:60]!r} has no place for the caption; write {CAPTION} where it "
                                 "should stand")
        return self

    @property
    def varies(self) -> bool:
        """Whether a caption can be another one in another step."""
        return self.shuffle or self.tag_dropout > 0 or len(set(self.templates)) > 1

    def longest(self, caption: str) -> str:
        """The caption in the longest template, with all its tags; where nothing varies, the caption of every step."""
        return max(self.templates, key=len, default=CAPTION).replace(CAPTION, caption)

    def tags(self, caption: str) -> tuple[list[str], list[str]]:
        """(tags that are kept in their places, tags behind them); what is empty between separators is no tag."""
        pieces = [piece.strip() for piece in caption.split(self.separator.strip() or self.separator)]
        tags = [piece for piece in pieces if piece]
        return tags[:self.keep_tags], tags[self.keep_tags:]


class AugmentationSpec(Part):
    """How an image is changed before it is encoded. `variants` of it are made once, seeded and cached, and one of them is
    picked by (training seed, step, sample) each time it comes up."""

    variants: int = Field(default=1, ge=1, le=256)
    flip: bool = False
    """Mirror half of the variants left to right."""
    crop: float = Field(default=0.0, ge=0, le=0.5)
    """Cut away up to this fraction of either side, at a random place, before the image goes into its bucket."""
    color: float = Field(default=0.0, ge=0, le=1)
    """Change brightness, contrast and saturation by a factor of up to 1 ± this."""
    noise: float = Field(default=0.0, ge=0, le=0.5)
    """Standard deviation of Gaussian noise, where black to white is 1."""

    @model_validator(mode="after")
    def _variants_differ(self):
        wanted = [name for name in ("flip", "crop", "color", "noise") if getattr(self, name)]
        if wanted and self.variants == 1:
            raise ValueError(
                f"variants is 1, so that every step would see the same image and {' and '.join(wanted)} would be frozen; "
                f"set variants to 2 or more, or switch {' and '.join(wanted)} off"
            )
        if self.variants > 1 and not wanted:
            raise ValueError(f"variants is {self.variants}, but nothing makes them differ; switch on flip, crop, color or "
                             "noise, or set variants to 1")
        return self


class DatasetImage(Part):
    """One training image. `digest` is the SHA-256 of the file, `size` is (width, height) in pixels, upright."""

    path: str
    name: str
    caption: str
    size: tuple[int, int]
    digest: str
    repeats: int = Field(default=1, ge=1, le=10_000)
    mask: str = ""
    """Path of its mask: a file that is white where the image counts, or the image itself where its transparency is the
    mask; empty: the image counts everywhere."""
    mask_digest: str = ""
    """SHA-256 of that file."""
    weight: float = Field(default=1.0, ge=0, le=100)
    """How much its loss counts."""
    background: str = Field(default="#ffffff", pattern="^#[0-9a-f]{6}$")
    """What shows through its transparent parts."""
    variation: CaptionVariationSpec = CaptionVariationSpec()
    augmentation: AugmentationSpec = AugmentationSpec()


class DatasetSpec(Part):
    """A light manifest: names, captions and sizes, never pixels. `notes` says what was skipped and why."""

    name: str
    images: tuple[DatasetImage, ...] = Field(min_length=1)
    trigger: str = ""
    notes: tuple[str, ...] = ()
