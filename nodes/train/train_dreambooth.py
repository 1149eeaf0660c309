"""The Train DreamBooth node: full fine-tuning, with prior preservation where class images are connected."""
from pathlib import Path

from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.families.component_configs import config_folder
from ...trainers.families.recognition import recognize
from ...trainers.reports import RunReport
from ...trainers.run_folder import Run
from ...trainers.spec import BaseModelSpec, DatasetSpec, FullSpec, checked
from ...trainers.words import counted
from .. import host, sockets
from ..base_model.base_model import load_line
from ..widgets import Schema, widget
from . import run_training
from .train_inputs import (
    batch_inputs,
    choose,
    data_inputs,
    flow_inputs,
    length_inputs,
    make_spec,
    prior_inputs,
    run_inputs,
    setting_inputs,
    text_encoder_input,
)


class TrainDreamBooth(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTrainDreamBooth",
            display_name="Train DreamBooth (FineTune)",
            category="FineTune/train",
            search_aliases=("full fine-tune", "finetuning", "checkpoint training", "kohya", "training"),
            description="Trains the model's own weights and saves a whole checkpoint: stronger than a LoRA, and gigabytes "
                        "large. With class images the model keeps its idea of other things of the class. Cancel saves; "
                        "queueing again goes on; nothing is overwritten.",
            is_output_node=True,
            inputs=[
                *data_inputs("checkpoint in output/checkpoints", "my_dreambooth"),
                *length_inputs(800, "800 is usual for a subject with class images, 400 without.", 5e-6,
                               "5e-6 is usual; 2e-6 when the text encoder learns too. Much lower than for a LoRA. Too high: "
                               "the model forgets, images break, or the loss becomes NaN.", step=1e-7),
                text_encoder_input("Above 0 the text encoder learns too, usually at the same 2e-6. Catches faces and new "
                                   "words better, and needs more memory.", step=1e-7),
                *run_inputs(),
                *setting_inputs(),
                *prior_inputs(),
                widget(FullSpec, "frozen_blocks", expert=True,
                       tooltip="Blocks of the denoiser that stay as they are, for example: down, mid, up.0. 'other' is what "
                               "is outside of blocks. Saves memory."),
                *batch_inputs(),
                widget(FullSpec, "file_precision", expert=True,
                       tooltip="Precision of the saved checkpoint. It is trained in fp32 in any case; fp32 doubles the "
                               "file's size."),
                widget(FullSpec, "shard_size", expert=True,
                       tooltip="Largest size of a file in GB, for uploads. 0 writes one file, which ComfyUI's checkpoint "
                               "loader needs; shards stay in the folder of the run."),
                *flow_inputs(),
                widget(FullSpec, "train_t5", expert=True,
                       tooltip="With a text_encoder_learning_rate: train T5 too, where the base has it (SD3, Flux.1), not "
                               "CLIP alone. Needs tens of GB more."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The trained model, for KSampler."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder, for CLIPTextEncode."),
                io.Vae.Output(display_name="vae", tooltip="Its VAE, which is the base's."),
                sockets.Base.Output(display_name="base", tooltip="The checkpoint as a base for Train nodes."),
                sockets.FileName.Output(display_name="ckpt_name",
                                      tooltip="The file's name, for Load Checkpoint or Load Base to Train. The summary says "
                                              "whether the former knows its size."),
                sockets.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.String.Output(display_name="summary", tooltip="What was trained, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.losses_of_files(inputs.get("name"))

    @classmethod
    def execute(cls, base: BaseModelSpec, dataset: DatasetSpec, name: str, frozen_blocks="",
                file_precision="fp16", shard_size=0.0, train_t5=False, **widgets):
        choice = choose("full", base, dataset, widgets)
        widgets = choice.widgets
        method = checked(FullSpec, text_encoder_learning_rate=widgets.pop("text_encoder_learning_rate"),
                         frozen_blocks=frozen_blocks, file_precision=file_precision, shard_size=shard_size,
                         train_t5=train_t5)
        spec = make_spec(base, dataset, name, method, **widgets)
        configs, own = config_folder(base), [Path(base.path)] if base.layout == "single_file" else []
        finished = run_training.run_training(spec, cls.hidden.unique_id, lambda run, report: host.unmatched_tensors(
            tensor_files(run, report), own, base.family, configs, is_alone(report)), choice.lines)
        summary = summarize(finished, method)
        finished.show(summary)
        files = tensor_files(finished.run, finished.report)
        alone = is_alone(finished.report)
        model, clip, vae = natives(files, base, alone)
        if alone:
            ckpt_name = finished.names["diffusion_model"]
            trained = recognize(str(host.artifact_folder("diffusion_model") / ckpt_name), ckpt_name, configs=base.configs,
                                others=[part.path for part in base.components[1:]])
        elif "checkpoint" in finished.names:
            ckpt_name = finished.names["checkpoint"]
            trained = recognize(str(host.base_path(ckpt_name)), ckpt_name, base.prediction_type,
                                str(configs) if base.layout == "diffusers" else base.configs)
        else:
            ckpt_name = trained = host.blocked("The checkpoint was saved in shards, which neither Load Checkpoint nor the "
                                               "Train nodes read. Set shard_size to 0 on Train DreamBooth.")
        return io.NodeOutput(
            model, clip, vae, trained, ckpt_name, {"loss": finished.run.losses()}, summary,
            ui={"text": [summary], "images": finished.images(), **choice.for_page,
                **({"checkpoint": [ckpt_name]} if "checkpoint" in finished.names else {})},
        )


def is_alone(report: RunReport) -> bool:
    """Whether the file is a denoiser without text encoders and VAE."""
    return any(file.kind == "diffusion_model" for file in report.files)


def natives(files: list[Path], base: BaseModelSpec, alone: bool):
    """What was trained as native (MODEL, CLIP, VAE); blocked outputs where the host has no model of its size."""
    try:
        return host.load_trained(files, base, alone)
    except UserError as reason:
        return [host.blocked(str(reason))] * 3


def tensor_files(run: Run, report: RunReport) -> list[Path]:
    return [run.folder / file.name for file in report.files if file.name.endswith(".safetensors")]


def summarize(finished: run_training.Finished, method: FullSpec) -> str:
    report, spec = finished.report, finished.spec
    placed = finished.names.get("checkpoint") or finished.names.get("diffusion_model")
    saved = placed or f"{len(report.files) - 1} shards in {finished.run.name}"
    prior = spec.prior and f"{counted(len(spec.prior.dataset.images), 'class image')}, weight {spec.prior.weight:g}"
    frozen = f"{', '.join(method.frozen_blocks)} frozen" if method.frozen_blocks else "all blocks"
    text = f"text encoder at {method.text_encoder_learning_rate:g}" if method.text_encoder_learning_rate else "denoiser only"
    return finished.summarize(
        f"{saved}: a denoiser for Load Diffusion Model, all {report.keys} tensors as they should be"
        if is_alone(report) else load_line(saved, tensor_files(finished.run, report), report.keys),
        f"Weights moved by {report.relative_change:.2%} of their length; {text}, {frozen}; "
        f"{prior or 'no class images'}.",
        f"{report.bytes / 1e9:.2f} GB in {method.file_precision}.",
    )
