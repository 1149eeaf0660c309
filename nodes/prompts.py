"""Prompts for looking at what was learnt."""
from comfy_api.latest import io

from ..trainers.errors import UserError


class PromptList(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTunePromptList",
            display_name="Prompt List",
            category="FineTune/evaluate",
            description="One prompt a line. Everything behind this node runs once per prompt, so one sampler draws them "
                        "all: connect it to CLIP Text Encode, and the pictures to Image Grid.",
            inputs=[
                io.String.Input("prompts", multiline=True, default="",
                                tooltip="One prompt a line; empty lines are passed over."),
                io.String.Input("template", default="{}",
                                tooltip="Each prompt takes the place of {}, for example: noto emoji of a {}"),
            ],
            outputs=[io.String.Output(display_name="prompt", is_output_list=True, tooltip="The prompts, one by one.")],
        )

    @classmethod
    def execute(cls, prompts, template):
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if not lines:
            raise UserError("prompts is empty. Type at least one prompt, one a line.")
        if "{}" not in template:
            raise UserError(f"template is {template!r}, which has no place {{}} for the prompt. Put {{}} into it.")
        return io.NodeOutput([template.replace("{}", line) for line in lines])
