"""What changes from step to step: captions, and variants of images."""
from comfy_api.latest import io

from ...trainers import randomness
from ...trainers.data.captions.templates import IMAGENET_OBJECTS, IMAGENET_STYLES
from ...trainers.data.captions.variation import vary_caption
from ...trainers.errors import UserError
from ...trainers.spec import AugmentationSpec, CaptionVariationSpec, DatasetSpec, checked
from ...trainers.words import counted
from .. import sockets
from ..widgets import Schema, widget

TEMPLATES = {"none": (), "ImageNet objects": IMAGENET_OBJECTS, "ImageNet styles": IMAGENET_STYLES}
OWN = "own"
EXAMPLES = 6


class VaryCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneVaryCaptions",
            display_name="Vary Captions",
            category="FineTune/dataset",
            search_aliases=("shuffle tags", "tag dropout", "caption templates"),
            description="Lets captions change from step to step: tags in another order, some left out, inside another "
                        "sentence. What varies is not learned by heart. The caption files stay as they are.",
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="Images with captions: Load Image Dataset."),
                widget(CaptionVariationSpec, "shuffle", default=True,
                       tooltip="Put the tags into another order in every step, so that none counts more because it comes "
                               "first. For captions made of tags; sentences lose their sense."),
                widget(CaptionVariationSpec, "keep_tags", default=1,
                       tooltip="So many tags at the front stay in place and are never left out: 1 for a trigger word."),
                widget(CaptionVariationSpec, "tag_dropout", step=0.05,
                       tooltip="Fraction of the other tags that is left out, each by itself. 0.1 is usual; much more, and "
                               "what the tags name is learned as part of the trigger."),
                widget(CaptionVariationSpec, "separator", tooltip="What stands between tags."),
                io.Combo.Input("templates", options=[*TEMPLATES, OWN], default="none",
                               tooltip="A sentence around the caption, another one in every step. ImageNet objects (a photo "
                                       "of a …) and styles (a painting in the style of …) are what Textual Inversion was "
                                       "published with; for captions that are one word or a few."),
                io.String.Input("own_templates", default="", multiline=True,
                                tooltip="For templates: own. One sentence a line, with {caption} where the caption stands."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="For the Train nodes."),
                io.String.Output(display_name="examples", tooltip="Captions as steps may see them."),
            ],
        )

    @classmethod
    def execute(cls, dataset, shuffle, keep_tags, tag_dropout, separator, templates, own_templates):
        variation = checked(
            CaptionVariationSpec, shuffle=shuffle, keep_tags=keep_tags, tag_dropout=tag_dropout, separator=separator,
            templates=sentences(own_templates) if templates == OWN else TEMPLATES[templates])
        examples = "\n".join(example_captions(dataset, variation))
        return io.NodeOutput(with_images(dataset, variation=variation), examples, ui={"text": [examples]})


def sentences(text: str) -> tuple[str, ...]:
    """The person's own templates, one a line."""
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise UserError("templates is own, but own_templates is empty. Write one sentence a line, with {caption} where the "
                        "caption should stand, or choose other templates.")
    return found


def example_captions(dataset: DatasetSpec, variation: CaptionVariationSpec) -> list[str]:
    """Captions of the first images as a step may see them; the same ones each time."""
    images = dataset.images
    return [vary_caption(images[number % len(images)].caption, variation,
                         randomness.generator(0, randomness.VARIATION, number)) for number in range(EXAMPLES)]


def with_images(dataset: DatasetSpec, **changes) -> DatasetSpec:
    """The dataset with something changed in all images."""
    return dataset.model_copy(update={
        "images": tuple(image.model_copy(update=changes) for image in dataset.images)})


class AugmentImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneAugmentImages",
            display_name="Augment Dataset Images",
            category="FineTune/dataset",
            search_aliases=("augmentation", "flip", "mirror", "color jitter"),
            description="Makes variants of every image, of which one is picked each time it is trained: mirrored, cut "
                        "closer, in other colors, with grain. Helps with few images. The files stay as they are; masks "
                        "follow.",
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="Images with captions: Load Image Dataset."),
                widget(AugmentationSpec, "variants", default=4,
                       tooltip="Variants of each image, made and encoded once, before the first step: 4 variants take 4 "
                               "times as long to encode and 4 times the disk space in the cache. Steps take no longer. 2 is "
                               "enough for flip alone."),
                widget(AugmentationSpec, "flip", default=True,
                       tooltip="Mirror half of the variants left to right. Not for faces that must stay as they are, for "
                               "writing, or for anything with a left and a right."),
                widget(AugmentationSpec, "crop", step=0.05,
                       tooltip="Cut away up to this fraction of either side, at a random place, and enlarge the rest. 0.1 "
                               "is mild. What the caption names may be cut off."),
                widget(AugmentationSpec, "color", step=0.05,
                       tooltip="Change brightness, contrast and saturation by up to this fraction. 0.1 is mild. Not for a "
                               "style that lives by its colors."),
                widget(AugmentationSpec, "noise", name="pixel_noise", step=0.01,
                       tooltip="Grain on the images: its standard deviation, where black to white is 1. Above 0.02 it is "
                               "learned too."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="For the Train nodes."),
                io.String.Output(display_name="report", tooltip="How many images will be encoded."),
            ],
        )

    @classmethod
    def execute(cls, dataset, variants, flip, crop, color, pixel_noise):
        augmentation = checked(AugmentationSpec, variants=variants, flip=flip, crop=crop, color=color, noise=pixel_noise)
        count = len(dataset.images)
        # Mirroring alone gives two different images, however many variants are asked for.
        different = min(variants, 2) if not (crop or color or pixel_noise) else variants
        report = (f"{counted(count, 'image')} in {counted(different, 'variant')}: {count * different} to encode before "
                  "the first step")
        return io.NodeOutput(with_images(dataset, augmentation=augmentation), report, ui={"text": [report]})
