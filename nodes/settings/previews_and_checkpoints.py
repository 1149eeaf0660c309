"""What is shown and kept while a run goes on."""
from comfy_api.latest import io

from ...trainers.spec import MAXIMUM_SEED, CheckpointSpec, PreviewSpec, ValidationSpec, checked
from .. import sockets


class PreviewsAndCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTunePreviewsAndCheckpoints",
            display_name="Previews & Checkpoints",
            category="FineTune/settings",
            description="What is drawn, saved and measured while a run goes on. Connect it to watching on a Train node: its "
                        "numbers then replace preview_every and checkpoint_every there. The prompts stay on the Train node.",
            inputs=[
                io.Int.Input("preview_every", default=100, min=0, max=1_000_000,
                             tooltip="Steps between previews; 0 for none."),
                io.String.Input("negative", default="", multiline=True,
                                tooltip="Negative prompt of all previews: what the images shall not show."),
                io.Float.Input("guidance", default=7.0, min=1.0, max=30.0, step=0.5,
                               tooltip="How strictly previews follow their prompts (CFG). 5 to 8 is usual; 1 ignores the "
                                       "negative prompt."),
                io.Int.Input("sampler_steps", default=20, min=1, max=200,
                             tooltip="Steps of DPM++ 2M for a preview. 15 to 25 is enough; more only takes longer."),
                io.Int.Input("images_per_prompt", default=1, min=1, max=16,
                             tooltip="Images of each prompt, each from other noise. Two or three tell luck from skill."),
                # Not "seed": frontends put a randomize control beside that, and every queue would be a new run.
                io.Int.Input("preview_noise", default=0, min=0, max=MAXIMUM_SEED,
                             tooltip="Which noise previews start from. It stays the same through the run, so that images "
                                     "of different steps can be compared. Another number draws other images."),
                io.Boolean.Input("from_ema", default=True,
                                 tooltip="With ema_decay on the Train node: draw with the mean weights, which are saved. "
                                         "Off: with the weights of the step. Without ema_decay: no difference."),
                io.Int.Input("checkpoint_every", default=250, min=0, max=1_000_000,
                             tooltip="Steps between checkpoints, from which a killed run goes on. 0: not by steps."),
                io.Float.Input("checkpoint_minutes", default=0.0, min=0.0, max=10_000.0, step=1.0,
                               tooltip="Minutes between checkpoints; with checkpoint_every too, whichever comes first. 0: "
                                       "not by time."),
                io.Int.Input("keep", default=2, min=1, max=1000,
                             tooltip="Newest checkpoints that stay on the disk, each with the file of its step."),
                io.Float.Input("validation_share", default=0.0, min=0.0, max=0.5, step=0.05,
                               tooltip="Share of the images that are not trained but tested, always with the same noise: "
                                       "their loss shows whether more is learned or only memorized. 0.1 to 0.2 with 20 "
                                       "images or more; 0: off."),
                io.Int.Input("validation_every", default=50, min=1, max=1_000_000,
                             tooltip="Steps between validations. An image held out takes about as long as two steps."),
                io.Int.Input("patience", default=0, min=0, max=1000,
                             tooltip="Stop when so many validations in a row brought no lower loss; the file is then "
                                     "that of the best one. 3 to 10; 0: train all steps. Needs a validation_share."),
                io.Boolean.Input("tensorboard", default=False,
                                 tooltip="Write TensorBoard files into the run's folder too. Needs the Python package "
                                         "tensorboard."),
            ],
            outputs=[sockets.Watching.Output(display_name="watching", tooltip="For watching on any Train node.")],
        )

    @classmethod
    def execute(cls, preview_every, negative, guidance, sampler_steps, images_per_prompt, preview_noise, from_ema,
                checkpoint_every, checkpoint_minutes, keep, validation_share, validation_every, patience, tensorboard):
        return io.NodeOutput(sockets.WatchingSettings(
            checked(PreviewSpec, every=preview_every, negative=negative.strip(), guidance=guidance,
                    sampler_steps=sampler_steps, images=images_per_prompt, seed=preview_noise, from_ema=from_ema),
            checked(CheckpointSpec, every=checkpoint_every, minutes=checkpoint_minutes, keep=keep),
            checked(ValidationSpec, share=validation_share, every=validation_every, patience=patience,
                    tensorboard=tensorboard),
        ))
