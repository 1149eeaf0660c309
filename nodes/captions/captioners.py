"""The captioners, one node each."""
import re

from comfy_api.latest import io

from ...trainers.captioning.model_folders import KINDS
from ...trainers.spec.captioning import (
    Blip2Spec,
    BlipSpec,
    DecodingSpec,
    Florence2Spec,
    GitSpec,
    TaggerSpec,
    VisionLanguageSpec,
)
from ..widgets import Schema, fields_of, widget
from .run_captioner import (
    CATEGORY,
    batch_input,
    caption,
    captioner_input,
    dataset_input,
    decoding_inputs,
    mode_input,
    model_state,
    outputs,
)

BEGINNING = "How every caption begins, for example: a photo of. Empty: the model begins itself."
TAGGER_FIELDS = {"keep_underscores": "underscores", "maximum_tags": "most", "escape_parentheses": "escape"}
"""Widget → field of the spec, where their names differ."""


def first_inputs(kind: str) -> list:
    return [dataset_input(), captioner_input(kind, KINDS[kind].models)]


def speak(cls, build, dataset, captioner, mode, batch_size, **widgets) -> io.NodeOutput:
    """Caption with a model that answers in sentences."""
    decoding = {name: widgets.pop(name) for name in DecodingSpec.model_fields if name in widgets}
    return caption(cls.hidden.unique_id, build, dataset, captioner, mode, batch_size, decoding=decoding, **widgets)


class CaptionBlip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneCaptionBlip",
            display_name="Caption with BLIP",
            category=CATEGORY,
            search_aliases=("auto caption", "image to text", "describe images"),
            description="One short sentence for every image, by BLIP. Small and quick: it runs on any computer. What is "
                        "described once is kept and found again.",
            inputs=[
                *first_inputs("blip"),
                widget(BlipSpec, "prompt", tooltip=BEGINNING),
                mode_input(), *decoding_inputs(40, 3), batch_input(8),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("blip", inputs["captioner"])

    @classmethod
    def execute(cls, **widgets):
        return speak(cls, BlipSpec, **widgets)


class CaptionBlip2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneCaptionBlip2",
            display_name="Caption with BLIP-2",
            category=CATEGORY,
            search_aliases=("auto caption", "image to text", "describe images"),
            description="One sentence for every image, or the answer to a question about it, by BLIP-2: an image encoder "
                        "before a language model. Needs a graphics card.",
            inputs=[
                *first_inputs("blip2"),
                widget(Blip2Spec, "prompt",
                       tooltip="A question in the form: Question: what is the person wearing? Answer: - only the answer "
                               "becomes the caption. Empty: a caption."),
                mode_input(), *decoding_inputs(40, 3), batch_input(4),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("blip2", inputs["captioner"])

    @classmethod
    def execute(cls, **widgets):
        return speak(cls, Blip2Spec, **widgets)


class CaptionGit(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneCaptionGit",
            display_name="Caption with GIT",
            category=CATEGORY,
            search_aliases=("auto caption", "image to text", "describe images"),
            description="One short sentence for every image, by GIT. Small and quick, an alternative to BLIP in the style "
                        "of the COCO captions.",
            inputs=[
                *first_inputs("git"),
                widget(GitSpec, "prompt", tooltip=BEGINNING),
                mode_input(), *decoding_inputs(40, 1), batch_input(8),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("git", inputs["captioner"])

    @classmethod
    def execute(cls, **widgets):
        return speak(cls, GitSpec, **widgets)


class CaptionFlorence2(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneCaptionFlorence2",
            display_name="Caption with Florence-2",
            category=CATEGORY,
            search_aliases=("auto caption", "image to text", "ocr", "describe images"),
            description="Captions of three lengths, a list of the objects, or the text in every image, by Florence-2: a "
                        "small model that describes well.",
            inputs=[
                *first_inputs("florence2"),
                widget(Florence2Spec, "instruction",
                       tooltip="What is written: one sentence, two or three, a paragraph, the names of the objects with "
                               "commas between, or what can be read in the image."),
                mode_input(), *decoding_inputs(256, 3), batch_input(8),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("florence2", inputs["captioner"])

    @classmethod
    def execute(cls, **widgets):
        return speak(cls, Florence2Spec, **widgets)


class CaptionVisionLanguage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneCaptionVisionLanguage",
            display_name="Caption with Vision-Language Model",
            category=CATEGORY,
            search_aliases=("vlm", "qwen", "llava", "auto caption", "image to text", "describe images"),
            description="Captions as you ask for them, by a model that reads images and follows instructions: Qwen-VL, "
                        "SmolVLM, LLaVA, InternVL, Gemma 3 and others that transformers knows.",
            inputs=[
                *first_inputs("vision_language"),
                widget(VisionLanguageSpec, "instruction", multiline=True,
                       default="Describe this image in one sentence for the training of an image generator. Name the "
                               "subject, what it does, its surroundings and the light. Do not begin with 'The image shows'.",
                       tooltip="What the model is asked about every image."),
                mode_input(), *decoding_inputs(120, 1), batch_input(2),
                widget(VisionLanguageSpec, "maximum_side",
                       tooltip="Larger images are shrunk to this side in pixels before the model sees them. Less is faster "
                               "and needs less memory; 0: as they are."),
                widget(VisionLanguageSpec, "system", name="system_prompt", expert=True, multiline=True,
                       tooltip="What the model is told before the instruction; empty for none. Not all models take it."),
                widget(DecodingSpec, "temperature", step=0.05, expert=True,
                       tooltip="0 always takes the likeliest word. Above it words are picked at random, one image at a "
                               "time; 0.6 is usual."),
                widget(DecodingSpec, "top_p", lowest=0.01, step=0.01, expert=True,
                       tooltip="With a temperature: pick from the likeliest words that together have this probability."),
                # Not "seed": frontends put a randomize control beside that, and every queue would ask anew.
                widget(DecodingSpec, "caption_seed", expert=True,
                       tooltip="With a temperature: another number gives other captions."),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("vision_language", inputs["captioner"])

    @classmethod
    def execute(cls, system_prompt="", **widgets):
        return speak(cls, VisionLanguageSpec, system=system_prompt, **widgets)


class TagImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTagImages",
            display_name="Tag Images (WD14)",
            category=CATEGORY,
            search_aliases=("wd14", "tagger", "danbooru", "booru tags", "deepdanbooru"),
            description="Danbooru tags for every image, by SmilingWolf's taggers (WD14 and later) or DeepDanbooru, with "
                        "onnxruntime. For bases that were trained on tags; thresholds can be changed without waiting.",
            inputs=[
                *first_inputs("tagger"),
                widget(TaggerSpec, "general_threshold", step=0.01,
                       tooltip="Tags of what is seen are written from this probability on. Lower: more tags, and more wrong "
                               "ones."),
                widget(TaggerSpec, "character_threshold", step=0.01,
                       tooltip="Names of characters are written from this probability on."),
                mode_input(),
                widget(TaggerSpec, "underscores", name="keep_underscores",
                       tooltip="Off: long_hair is written as long hair. Faces such as ^_^ keep theirs."),
                widget(TaggerSpec, "exclude", multiline=True,
                       tooltip="Tags that are never written, with commas or on lines of their own. Leave out here what your "
                               "trigger word shall stand for."),
                batch_input(8),
                widget(TaggerSpec, "general", expert=True, tooltip="Write tags of what is seen."),
                widget(TaggerSpec, "characters", expert=True, tooltip="Write names of known characters."),
                widget(TaggerSpec, "rating", expert=True,
                       tooltip="Write the likeliest rating last, for example rating:general."),
                widget(TaggerSpec, "order", expert=True,
                       tooltip="characters first: then the others; within both, and with probability, the likeliest first."),
                widget(TaggerSpec, "most", name="maximum_tags", expert=True,
                       tooltip="The most tags for one image, the likeliest; 0: all. About 25 fit into 75 tokens."),
                widget(TaggerSpec, "escape", name="escape_parentheses", expert=True,
                       tooltip="Write parentheses as \\( \\), as prompts need them. Captions to train on do not."),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("tagger", inputs["captioner"])

    @classmethod
    def execute(cls, dataset, captioner, mode, batch_size, exclude="", **widgets):
        tags = tuple(tag.strip() for tag in re.split(r"[,\n]", exclude) if tag.strip())
        return caption(cls.hidden.unique_id, TaggerSpec, dataset, captioner, mode, batch_size, exclude=tags,
                       **fields_of(widgets, TAGGER_FIELDS))
