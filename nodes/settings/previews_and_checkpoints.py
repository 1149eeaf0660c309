"""What is shown and kept while a run goes on."""
from comfy_api.latest import io

from ...trainers.spec import CheckpointSpec, PreviewSpec, ValidationSpec, checked
from .. import sockets
from ..widgets import Schema, widget

FIELDS = {
    PreviewSpec: {"preview_every": "every", "negative_prompt": "negative", "guidance": "guidance",
                  "sampler_steps": "sampler_steps", "images_per_prompt": "images", "preview_seed": "seed",
                  "preview_with_ema": "from_ema"},
    CheckpointSpec: {"checkpoint_every": "every", "checkpoint_minutes": "minutes", "checkpoints_to_keep": "keep"},
    ValidationSpec: {"validation_fraction": "fraction", "validation_every": "every", "patience": "patience",
                     "tensorboard": "tensorboard"},
}
"""Part of the spec → widget → field."""


class PreviewsAndCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTunePreviewsAndCheckpoints",
            display_name="Training Previews & Checkpoints",
            category="FineTune/settings",
            search_aliases=("sample images", "validation loss", "early stopping", "save every", "tensorboard"),
            description="What is generated, saved and measured while a run goes on. Connect it to previews_and_checkpoints "
                        "on a Train node. The prompts of the previews stay on the Train node.",
            inputs=[
                widget(PreviewSpec, "every", name="preview_every",
                       tooltip="Steps between previews. 0: five times in a run. Without prompts on the Train node there are "
                               "none."),
                widget(PreviewSpec, "negative", name="negative_prompt", multiline=True,
                       tooltip="Negative prompt of all previews: what the images shall not show."),
                widget(PreviewSpec, "guidance",
                       tooltip="How strictly previews follow their prompts (CFG, or distilled guidance). 0: what is usual "
                               "for the base, 7 for SD 1.x to SDXL. 1 ignores the negative prompt."),
                widget(PreviewSpec, "sampler_steps",
                       tooltip="Steps of the sampler for a preview. 0: what is usual for the base, 20 for SD 1.x to SDXL. "
                               "15 to 25 is enough; more only takes longer."),
                widget(PreviewSpec, "images", name="images_per_prompt",
                       tooltip="Images of each prompt, each from other noise. Two or three tell luck from skill."),
                widget(CheckpointSpec, "every", name="checkpoint_every",
                       tooltip="Steps between checkpoints, from which a killed run goes on. 0: not by steps."),
                widget(ValidationSpec, "fraction", name="validation_fraction",
                       tooltip="Fraction of the images that are not trained but tested, always with the same noise: their "
                               "loss shows whether more is learned or only memorized. 0.1 to 0.2 with 20 images or more; 0: "
                               "off."),
                widget(ValidationSpec, "patience",
                       tooltip="Early stopping: end when so many validations in a row brought no lower loss; the file is "
                               "then that of the best one. 3 to 10; 0: train all steps. Needs a validation_fraction."),
                # Not "seed": frontends put a randomize control beside that, and every queue would be a new run.
                widget(PreviewSpec, "seed", name="preview_seed", expert=True,
                       tooltip="Which noise previews start from. It stays the same through the run, so that images of "
                               "different steps can be compared. Another number gives other images."),
                widget(PreviewSpec, "from_ema", name="preview_with_ema", expert=True,
                       tooltip="With ema_decay on the Train node: generate with the averaged weights, which are saved. Off: "
                               "with the weights of the step. Without ema_decay: no difference."),
                widget(CheckpointSpec, "minutes", name="checkpoint_minutes", expert=True,
                       tooltip="Minutes between checkpoints; with checkpoint_every too, whichever comes first. 0: not by "
                               "time."),
                widget(CheckpointSpec, "keep", name="checkpoints_to_keep", expert=True,
                       tooltip="Newest checkpoints that stay on the disk, each with the file of its step."),
                widget(ValidationSpec, "every", name="validation_every", expert=True,
                       tooltip="Steps between validations. An image held out takes about as long as two steps."),
                widget(ValidationSpec, "tensorboard", expert=True,
                       tooltip="Write TensorBoard files into the run's folder too. Needs the Python package tensorboard."),
            ],
            outputs=[sockets.Monitoring.Output(display_name="previews_and_checkpoints",
                                               tooltip="For previews_and_checkpoints on any Train node.")],
        )

    @classmethod
    def execute(cls, **widgets):
        widgets["negative_prompt"] = widgets["negative_prompt"].strip()
        return io.NodeOutput(sockets.Monitored(*(
            checked(part, **{field: widgets[name] for name, field in names.items() if name in widgets})
            for part, names in FIELDS.items())))
