"""The Train LoRA node."""
from comfy_api.latest import io
from safetensors.torch import load_file

from ...trainers.spec import BaseModelSpec, DatasetSpec, LoraSpec
from ...trainers.spec.adapters import ADAPTERS
from ...trainers.words import counted
from .. import host, sockets
from ..widgets import Schema
from . import run_training
from .train_inputs import (
    batch_inputs,
    choose,
    data_inputs,
    flow_inputs,
    length_inputs,
    lora_inputs,
    lora_settings_input,
    lora_spec,
    make_spec,
    prior_inputs,
    run_inputs,
    setting_inputs,
    text_encoder_input,
)

OWN_FIELDS = ("rank", "alpha", "targets", "text_encoder_learning_rate")
"""Widgets that are fields of the method; the other fields stand on LoRA Settings."""


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTrainLora",
            display_name="Train LoRA (FineTune)",
            category="FineTune/train",
            search_aliases=("fine-tune", "finetuning", "kohya", "lora trainer", "dreambooth lora", "lycoris", "dora",
                            "locon", "training"),
            description="Trains a LoRA in a process of its own. Cancel saves what was learned; queueing the same graph "
                        "again goes on from there, and returns at once when the run is finished. Any changed setting "
                        "is a new run; nothing is overwritten.",
            is_output_node=True,
            inputs=[
                *data_inputs("file in output/loras", "my_lora", goals=True),
                *length_inputs(1500, "50 to 100 per image is a start for a subject or style.", 1e-4,
                               "1e-4 is usual for LoRA, 1 with the optimizer prodigy. Too high: images break or the loss "
                               "becomes NaN."),
                *lora_inputs(16, "Size of the LoRA. 4 to 16 for a style or subject, 32 and more for many concepts."),
                text_encoder_input("Above 0 the text encoder learns too, at about a half to a tenth of the learning rate. "
                                   "Helps new words; needs more memory."),
                *run_inputs(),
                lora_settings_input(),
                *setting_inputs(),
                *prior_inputs(),
                *batch_inputs(),
                *flow_inputs(),
            ],
            outputs=[
                sockets.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA."),
                sockets.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                sockets.FileName.Output(display_name="lora_name",
                                      tooltip="The file's name: connect it to the lora_name of any LoRA loader."),
                sockets.LoraStack.Output(display_name="lora_stack", tooltip="For nodes that take a LoRA stack."),
                io.String.Output(display_name="summary", tooltip="What was trained, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.losses_of_files(inputs.get("name"))

    @classmethod
    def execute(cls, base: BaseModelSpec, dataset: DatasetSpec, name: str, lora_settings: LoraSpec | None = None, **widgets):
        choice = choose("lora", base, dataset, widgets)
        widgets = choice.widgets
        method = lora_spec(lora_settings, **{field: widgets.pop(field) for field in OWN_FIELDS})
        spec = make_spec(base, dataset, name, method, **widgets)
        finished = run_training.run_training(spec, cls.hidden.unique_id, lambda run, report: host.unloaded_keys(
            load_file(run.artifact), base), choice.lines)
        lora_name, report = finished.names["lora"], finished.report
        summary = finished.summarize(
            f"{lora_name}: loads in ComfyUI with all {report.keys} keys of {counted(report.layers, 'layer')}",
            f"{describe(method)}, {report.bytes / 1e6:.2f} MB.",
        )
        finished.show(summary)
        return io.NodeOutput(
            load_file(finished.path("lora")), {"loss": finished.run.losses()}, lora_name, [(lora_name, 1.0, 1.0)], summary,
            ui={"text": [summary], "lora": [lora_name], "images": finished.images(), **choice.for_page},
        )


def describe(method: LoraSpec) -> str:
    """The adapters in words: their kind if it is another than LoRA, and what differs from the usual."""
    parts = [] if method.adapter == "lora" else [ADAPTERS[method.adapter].title]
    parts += [f"rank {method.rank}", f"alpha {method.alpha:g}"]
    if method.adapter == "lokr" and method.kronecker_factor > 0:
        parts.append(f"factor {method.kronecker_factor}")
    if method.convolution_rank:
        parts.append(f"convolutions rank {method.convolution_rank}")
    for words, values in (("rank", method.block_ranks), ("learning rate ×", method.block_rates)):
        parts += [f"{block} {words} {number:g}" for block, number in values]
    if method.rank_stabilized:
        parts.append("rank-stabilized")
    if method.plus_ratio != 1:
        parts.append(f"LoRA+ {method.plus_ratio:g}")
    text = ", ".join([*parts, method.targets])
    return text[0].upper() + text[1:]
