"""Sentences around a caption, of which one is picked in every step.

The lists are those with which Textual Inversion is trained (Gal et al. 2022, arXiv:2208.01618; `personalized.py` of its
code), after CLIP's prompts for ImageNet (Radford et al. 2021, arXiv:2103.00020). Two sentences that its list of styles
holds twice stand here once.
"""
from ...spec.dataset import CAPTION


def _around(*beginnings: str) -> tuple[str, ...]:
    return tuple(f"{beginning} {CAPTION}" for beginning in beginnings)


IMAGENET_OBJECTS = _around(
    "a photo of a", "a rendering of a", "a cropped photo of the", "the photo of a", "a photo of a clean",
    "a photo of a dirty", "a dark photo of the", "a photo of my", "a photo of the cool", "a close-up photo of a",
    "a bright photo of the", "a cropped photo of a", "a photo of the", "a good photo of the", "a photo of one",
    "a close-up photo of the", "a rendition of the", "a photo of the clean", "a rendition of a", "a photo of a nice",
    "a good photo of a", "a photo of the nice", "a photo of the small", "a photo of the weird", "a photo of the large",
    "a photo of a cool", "a photo of a small",
)
IMAGENET_STYLES = _around(*(f"{beginning} in the style of" for beginning in (
    "a painting", "a rendering", "a cropped painting", "the painting", "a clean painting", "a dirty painting",
    "a dark painting", "an image", "a cool painting", "a close-up painting", "a bright painting", "a good painting",
    "a rendition", "a nice painting", "a small painting", "a weird painting", "a large painting",
)))
