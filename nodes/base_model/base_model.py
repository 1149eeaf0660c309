"""Where training starts: a checkpoint, a diffusers folder, or the small demo model."""
from comfy_api.latest import io

from ...trainers import families
from ...trainers.errors import UserError
from ...trainers.families.presets import native_resolution
from ...trainers.families.recognition import PredictionChoice, fingerprint_of, recognize
from ...trainers.families.sizes import check_sizes
from ...trainers.spec import BaseModelSpec
from .. import host, sockets
from ..widgets import Schema, advanced

DEMO, DEMO_FLOW = "demo base (comes with the pack)", "demo flow base (comes with the pack)"
DEMOS = {DEMO: "Stable Diffusion 1.x", DEMO_FLOW: "flow (Stable Diffusion 3)"}
"""Demo models as Load Base to Train and as Load Demo Base call them."""
LAYOUTS = {"single_file": "single file", "diffusers": "diffusers folder", "separate_files": "separate files"}
PREDICTION_TYPES = {"epsilon": "noise prediction (epsilon)", "v_prediction": "v-prediction", "flow": "rectified flow"}


def describe(base: BaseModelSpec) -> str:
    schedule = " with zero terminal SNR" if base.zero_terminal_snr else ""
    return ", ".join([families.get(base.family).base_title(base), PREDICTION_TYPES[base.prediction_type] + schedule,
                      LAYOUTS[base.layout], *([base.storage] if base.storage else [])])


def chosen_base(checkpoint: str, prediction: PredictionChoice) -> BaseModelSpec:
    """The base behind a choice. Raises UserError for what cannot be trained."""
    path = host.base_path(checkpoint)
    base = recognize(str(path), checkpoint, prediction)
    if base.layout == "single_file":
        check_sizes(path, checkpoint, base.family, base.configs)
    return base


def notes_of(base: BaseModelSpec) -> str:
    """Lines for what people should know before they train on a base; empty for most."""
    return "".join(f"\nNote: {note}." for note in families.get(base.family).base_notes(base))


def demo_base(name: str) -> BaseModelSpec:
    """The demo model behind one of DEMOS' names."""
    path = host.DEMO_FLOW_BASE if name == DEMO_FLOW else host.DEMO_BASE
    return recognize(str(path), path.stem)


def loader_note(base: BaseModelSpec) -> str:
    """A line for bases that the core's loaders refuse; empty for all others."""
    refusal = host.core_refusal(base)
    loader = "Load Checkpoint" if base.layout == "single_file" else "loaders"
    return refusal and (f"\nComfyUI's own {loader} cannot load this: {refusal}. It can be trained; to generate with it, use "
                        "the node Load Base to Train, which gives its MODEL, CLIP and VAE.")


def load_line(name: str, files: list, tensors: int) -> str:
    """What a summary says first of a checkpoint that was made: by what it is loaded. `files` are its file, or its shards."""
    refusal = host.host_refusal(files)
    if refusal:
        return (f"{name}: all {tensors} tensors are as they should be. Load Base to Train loads it; ComfyUI's Load "
                f"Checkpoint does not, because {refusal}")
    return f"{name}: loads in ComfyUI with all {tensors} tensors"


def prediction_input():
    return io.Combo.Input("prediction", options=["auto", "epsilon", "v_prediction"], default="auto",
                          tooltip="What the model predicts. auto reads it from the file; set it only for a "
                                  "v-prediction model that does not say so.")


def variant_input():
    return advanced(io.Combo.Input(
        "variant", options=["auto", "base", "distilled"], default="auto", optional=True,
        tooltip="Whether the model was distilled to need few steps (Turbo, schnell, Flash). auto reads it from the file, or "
                "from its name where files look alike; set it where the node says the wrong one."))


def of_variant(base: BaseModelSpec, variant: str) -> BaseModelSpec:
    return base if variant == "auto" else base.model_copy(update={"variant": variant})


class LoadBase(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneLoadBase",
            display_name="Load Base to Train",
            category="FineTune/base model",
            search_aliases=("checkpoint loader", "base model", "fine-tune", "training base"),
            description="One model for all of a training graph: its MODEL, CLIP and VAE for the core's nodes, and the base "
                        "for the Train nodes. Loads checkpoints, diffusers folders, and the small checkpoints that were "
                        "trained on the demo base, which Load Checkpoint does not know.",
            inputs=[
                io.Combo.Input("checkpoint", options=[*DEMOS, *host.base_choices()], default=DEMO,
                               tooltip="Your checkpoint: files in models/checkpoints and folders in models/diffusers. Train "
                                       "on the model you will use the result with, or on the one it descends from."),
                prediction_input(),
                variant_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler, LoraLoader and every other core node."),
                io.Clip.Output(display_name="clip", tooltip="For CLIPTextEncode."),
                io.Vae.Output(display_name="vae", tooltip="For VAEDecode."),
                sockets.Base.Output(display_name="base", tooltip="For the Train nodes."),
                io.Latent.Output(display_name="latent",
                                 tooltip="An empty latent of the size that the base generates, for KSampler."),
                io.Int.Output(display_name="resolution",
                              tooltip="That size in pixels: for width and height, or the resolution of a Train node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        chosen = inputs["checkpoint"]
        return chosen if chosen in DEMOS else fingerprint_of(host.base_path(chosen))

    @classmethod
    def execute(cls, checkpoint, prediction, variant="auto"):
        base = demo_base(checkpoint) if checkpoint in DEMOS else of_variant(chosen_base(checkpoint, prediction), variant)
        side = native_resolution(base)
        text = f"{describe(base)}, made for {side} × {side} pixels{notes_of(base)}"
        try:
            natives = host.load_base(base)
        except UserError as reason:  # it can be trained all the same
            natives = [host.blocked(str(reason))] * 3
            text += f"\n{reason}"
        host.NodeProgress(cls.hidden.unique_id).show(text)
        return io.NodeOutput(*natives, base, host.empty_latent(base, side), side, ui={"text": [text]})


class LoadDemoBase(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneLoadDemoBase",
            display_name="Load Demo Base",
            category="FineTune/base model",
            search_aliases=("demo", "example model", "tiny model"),
            description="A real, small Stable Diffusion 1.x that comes with the pack, or a flow model of the kind of Stable "
                        "Diffusion 3. They generate 64-pixel emoji on any computer in a second, so that training can be "
                        "tried without a download. Their styles are called 'noto emoji' and 'twemoji'.",
            inputs=[
                io.Combo.Input("model", options=list(DEMOS.values()), default=DEMOS[DEMO], optional=True,
                               tooltip="Both draw the same emoji. The flow model is trained as Stable Diffusion 3 and Flux "
                                       "are."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler, LoraLoader and every other core node."),
                io.Clip.Output(display_name="clip", tooltip="For CLIPTextEncode."),
                io.Vae.Output(display_name="vae", tooltip="For VAEDecode. Images are 64 × 64."),
                sockets.Base.Output(display_name="base", tooltip="For the Train nodes."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model=DEMOS[DEMO]):
        base = demo_base(next(name for name, title in DEMOS.items() if title == model))
        host.NodeProgress(cls.hidden.unique_id).show(describe(base))
        return io.NodeOutput(*host.load_base(base), base)


class BaseModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneBaseModel",
            display_name="Training Base Model",
            category="FineTune/base model",
            search_aliases=("checkpoint", "pretrained model", "fine-tune"),
            description="The model to train on: a checkpoint (.safetensors) or a diffusers folder. Its family is found "
                        "by itself and shown; no weights are loaded here.",
            inputs=[
                io.Combo.Input("checkpoint", options=host.base_choices(),
                               tooltip="Files in models/checkpoints and folders in models/diffusers. Train on the model "
                                       "you will use the LoRA with, or on the one it descends from."),
                prediction_input(),
                variant_input(),
            ],
            outputs=[
                sockets.Base.Output(display_name="base", tooltip="For the Train nodes."),
                io.String.Output(display_name="description", tooltip="The family and prediction type that were found."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint_of(host.base_path(inputs["checkpoint"]))

    @classmethod
    def execute(cls, checkpoint, prediction, variant="auto"):
        base = of_variant(chosen_base(checkpoint, prediction), variant)
        text = describe(base) + notes_of(base) + loader_note(base)
        host.NodeProgress(cls.hidden.unique_id).show(text)
        return io.NodeOutput(base, describe(base), ui={"text": [text]})
