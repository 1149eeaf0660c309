"""Where training starts: a checkpoint, a diffusers folder, or the small demo model."""
from comfy_api.latest import io

from ..trainers import families
from ..trainers.families.recognition import fingerprint_of, recognise
from . import host, types

OBJECTIVES = {"epsilon": "noise prediction (epsilon)", "v_prediction": "v-prediction", "flow": "rectified flow"}


def describe(base) -> str:
    schedule = " with zero terminal SNR" if base.zero_terminal_snr else ""
    kind = "single file" if base.layout == "single_file" else "diffusers folder"
    return ", ".join([families.get(base.family).title, OBJECTIVES[base.objective] + schedule, kind,
                      *([base.storage] if base.storage else [])])


class LoadDemoBase(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneLoadDemoBase",
            display_name="Load Demo Base",
            category="FineTune/base model",
            description="A real, small Stable Diffusion 1.x that comes with the pack. It draws 64-pixel emoji on any "
                        "computer in a second, so that training can be tried without a download. Its styles are called "
                        "'noto emoji' and 'twemoji'.",
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler, LoraLoader and every other core node."),
                io.Clip.Output(display_name="clip", tooltip="For CLIPTextEncode."),
                io.Vae.Output(display_name="vae", tooltip="For VAEDecode. Pictures are 64 × 64."),
                types.Base.Output(display_name="base", tooltip="For the Train nodes."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls):
        base = recognise(str(host.DEMO_BASE), "demo_base")
        model, clip, vae = host.load_native(host.DEMO_BASE)
        host.NodeProgress(cls.hidden.unique_id).show(describe(base))
        return io.NodeOutput(model, clip, vae, base)


class BaseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneBaseModel",
            display_name="Base Model",
            category="FineTune/base model",
            description="The model to train on: a checkpoint (.safetensors) or a diffusers folder. Its family is found "
                        "by itself and shown; no weights are loaded here.",
            inputs=[
                io.Combo.Input("checkpoint", options=host.base_choices(),
                               tooltip="Files in models/checkpoints and folders in models/diffusers. Train on the model "
                                       "you will use the LoRA with, or on the one it descends from."),
                io.Combo.Input("prediction", options=["auto", "epsilon", "v_prediction"], default="auto",
                               tooltip="What the model predicts. auto reads it from the file; set it only for a "
                                       "v-prediction model that does not say so."),
            ],
            outputs=[
                types.Base.Output(display_name="base", tooltip="For the Train nodes."),
                io.String.Output(display_name="description", tooltip="The family and prediction type that were found."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint_of(host.base_path(inputs["checkpoint"]))

    @classmethod
    def execute(cls, checkpoint, prediction):
        base = recognise(str(host.base_path(checkpoint)), checkpoint, prediction)
        host.NodeProgress(cls.hidden.unique_id).show(describe(base))
        return io.NodeOutput(base, describe(base), ui={"text": [describe(base)]})
