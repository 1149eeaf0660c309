"""The captioners, one node each."""
import re

from comfy_api.latest import io

from ...trainers.captioning.model_folders import KINDS
from ...trainers.spec import MAXIMUM_SEED
from ...trainers.spec.captioning import Blip2Spec, BlipSpec, Florence2Spec, GitSpec, TaggerSpec, VisionLanguageSpec
from ..widgets import Schema, advanced
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

DECODING = ("maximum_tokens", "beams", "repetition_penalty", "temperature", "top_p", "caption_seed")


def first_inputs(kind: str) -> list:
    return [dataset_input(), captioner_input(kind, KINDS[kind].models)]


def speak(cls, build, dataset, captioner, mode, batch_size, **widgets) -> io.NodeOutput:
    """Caption with a model that answers in sentences."""
    decoding = {name: widgets.pop(name) for name in DECODING if name in widgets}
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
                io.String.Input("prompt", default="",
                                tooltip="How every caption begins, for example: a photo of. Empty: the model begins "
                                        "itself."),
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
                io.String.Input("prompt", default="",
                                tooltip="A question in the form: Question: what is the person wearing? Answer: - only the "
                                        "answer becomes the caption. Empty: a caption."),
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
                io.String.Input("prompt", default="",
                                tooltip="How every caption begins, for example: a photo of. Empty: the model begins "
                                        "itself."),
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
                io.Combo.Input("instruction", options=["caption", "detailed caption", "more detailed caption", "objects",
                                                       "text in the image"], default="detailed caption",
                               tooltip="What is written: one sentence, two or three, a paragraph, the names of the objects "
                                       "with commas between, or what can be read in the image."),
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
                io.String.Input("instruction", multiline=True,
                                default="Describe this image in one sentence for the training of an image generator. Name "
                                        "the subject, what it does, its surroundings and the light. Do not begin with 'The "
                                        "image shows'.",
                                tooltip="What the model is asked about every image."),
                mode_input(), *decoding_inputs(120, 1), batch_input(2),
                io.Int.Input("maximum_side", default=1024, min=0, max=8192,
                             tooltip="Larger images are shrunk to this side in pixels before the model sees them. Less is "
                                     "faster and needs less memory; 0: as they are."),
                advanced(io.String.Input("system_prompt", multiline=True, default="", optional=True,
                                         tooltip="What the model is told before the instruction; empty for none. Not all "
                                                 "models take it.")),
                advanced(io.Float.Input("temperature", default=0.0, min=0.0, max=2.0, step=0.05, optional=True,
                                        tooltip="0 always takes the likeliest word. Above it words are picked at random, "
                                                "one image at a time; 0.6 is usual.")),
                advanced(io.Float.Input("top_p", default=0.9, min=0.01, max=1.0, step=0.01, optional=True,
                                        tooltip="With a temperature: pick from the likeliest words that together have this "
                                                "probability.")),
                # Not "seed": frontends put a randomize control beside that, and every queue would ask anew.
                advanced(io.Int.Input("caption_seed", default=0, min=0, max=MAXIMUM_SEED, optional=True,
                                      tooltip="With a temperature: another number gives other captions.")),
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
                io.Float.Input("general_threshold", default=0.35, min=0.05, max=1.0, step=0.01,
                               tooltip="Tags of what is seen are written from this probability on. Lower: more tags, and "
                                       "more wrong ones."),
                io.Float.Input("character_threshold", default=0.85, min=0.05, max=1.0, step=0.01,
                               tooltip="Names of characters are written from this probability on."),
                mode_input(),
                io.Boolean.Input("keep_underscores", default=False,
                                 tooltip="Off: long_hair is written as long hair. Faces such as ^_^ keep theirs."),
                io.String.Input("exclude", default="", multiline=True,
                                tooltip="Tags that are never written, with commas or on lines of their own. Leave out here "
                                        "what your trigger word shall stand for."),
                batch_input(8),
                advanced(io.Boolean.Input("general", default=True, optional=True,
                                          tooltip="Write tags of what is seen.")),
                advanced(io.Boolean.Input("characters", default=True, optional=True,
                                          tooltip="Write names of known characters.")),
                advanced(io.Boolean.Input("rating", default=False, optional=True,
                                          tooltip="Write the likeliest rating last, for example rating:general.")),
                advanced(io.Combo.Input("order", options=["characters first", "probability", "alphabet"],
                                        default="characters first", optional=True,
                                        tooltip="characters first: then the others; within both, and with probability, the "
                                                "likeliest first.")),
                advanced(io.Int.Input("maximum_tags", default=0, min=0, max=1000, optional=True,
                                      tooltip="The most tags for one image, the likeliest; 0: all. About 25 fit into 75 "
                                              "tokens.")),
                advanced(io.Boolean.Input("escape_parentheses", default=False, optional=True,
                                          tooltip="Write parentheses as \\( \\), as prompts need them. Captions to train on "
                                                  "do not.")),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return model_state("tagger", inputs["captioner"])

    @classmethod
    def execute(cls, dataset, captioner, mode, batch_size, keep_underscores, exclude="", maximum_tags=0,
                escape_parentheses=False, **settings):
        tags = tuple(tag.strip() for tag in re.split(r"[,\n]", exclude) if tag.strip())
        return caption(cls.hidden.unique_id, TaggerSpec, dataset, captioner, mode, batch_size, exclude=tags,
                       underscores=keep_underscores, most=maximum_tags, escape=escape_parentheses, **settings)
