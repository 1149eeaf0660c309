"""Prompts for looking at what was learned."""
from comfy_api.latest import io

from ...trainers.errors import UserError
from .. import sockets
from ..widgets import Schema, advanced


class PromptList(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTunePromptList",
            display_name="Prompt List for Evaluation",
            category="FineTune/evaluate",
            search_aliases=("prompts", "batch prompts", "evaluation"),
            description="One prompt a line. Everything behind this node runs once per prompt, so one sampler generates them "
                        "all: connect it to CLIP Text Encode, and the images to Image Grid. With a dataset connected, "
                        "captions of its images are taken where no prompts are typed.",
            inputs=[
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="One prompt a line; empty lines are passed over. Empty, with a dataset connected: "
                                        "captions of its images."),
                io.String.Input("template", default="{}",
                                tooltip="Each prompt takes the place of {}, for example: noto emoji of a {}"),
                sockets.Dataset.Input("dataset", optional=True,
                                    tooltip="Where captions are taken from while prompts is empty: Load Image Dataset."),
                advanced(io.Int.Input("count", default=4, min=1, max=64, optional=True,
                                      tooltip="How many different captions are taken, evenly spread over the dataset.")),
            ],
            outputs=[
                io.String.Output(display_name="prompt", is_output_list=True, tooltip="The prompts, one by one."),
                io.String.Output(display_name="text",
                                 tooltip="All of them, one a line: for preview_prompts on a Train node."),
            ],
        )

    @classmethod
    def execute(cls, prompts, template, dataset=None, count=4):
        if "{}" not in template:
            raise UserError(f"template is {template!r}, which has no place {{}} for the prompt. Put {{}} into it.")
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or captions_of(dataset, count)
        if not lines:
            raise UserError("prompts is empty. Type at least one prompt, one a line" + (
                ": the images of the dataset have neither captions nor a trigger." if dataset else
                ", or connect a dataset."))
        made = [template.replace("{}", line) for line in lines]
        return io.NodeOutput(made, "\n".join(made))


def captions_of(dataset, count: int) -> list[str]:
    """Up to `count` different captions, evenly spread over a dataset's images, each in one line."""
    captions = [" ".join(image.caption.split()) for image in dataset.images] if dataset else []
    different = [caption for caption in dict.fromkeys(captions) if caption]
    count = min(count, len(different))
    return [different[number * len(different) // count] for number in range(count)]
