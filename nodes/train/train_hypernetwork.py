"""The Train Hypernetwork node."""
from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.spec import BaseModelSpec, DatasetSpec, HypernetworkSpec, checked
from .. import host, sockets
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
)


class TrainHypernetwork(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTrainHypernetwork",
            display_name="Train Hypernetwork (FineTune)",
            category="FineTune/train",
            search_aliases=("fine-tune", "finetuning", "a1111 hypernetwork", "training"),
            description="Trains a hypernetwork: small networks that change what attention sees, in a .pt file for "
                        "HypernetworkLoader and A1111. For styles more than for subjects. Cancel, resume and names work as "
                        "in Train LoRA.",
            is_output_node=True,
            inputs=[
                *data_inputs("file in models/hypernetworks", "my_hypernetwork"),
                *length_inputs(2000, "A hypernetwork needs more of them than a LoRA.", 1e-4,
                               "1e-4 for a few thousand steps; recipes for A1111 use 1e-5 for 10 000 and more. The demo "
                               "base takes 3e-4 to 1e-3; the optimizer prodigy 1. Too high: subjects fall apart, or the "
                               "loss becomes NaN."),
                io.String.Input("layer_structure", default="1, 2, 1",
                                tooltip="Widths of the layers as multiples of the context's width, from 1 to 1. "
                                        "1, 2, 1 is usual; 1, 2, 2, 1 is deeper; 1, 0.5, 1 makes a small file."),
                widget(HypernetworkSpec, "activation",
                       tooltip="What stands between the layers. linear is nothing, and the choice to begin with; the others "
                               "bend the answer. swish is Hardswish, as everywhere in these files."),
                *run_inputs(),
                *setting_inputs(),
                widget(HypernetworkSpec, "layer_norm", expert=True,
                       tooltip="Layer norm after every layer: steadier with deep structures. With it, the last layer is "
                               "activated too, because that is how ComfyUI reads such files."),
                widget(HypernetworkSpec, "activate_output", expert=True,
                       tooltip="The activation after the last layer too, which limits how the output can push."),
                widget(HypernetworkSpec, "widths", name="attention_layers", expert=True,
                       tooltip="Where it acts. cross-attention: on the prompt only. self-attention: on the image only. "
                               "Files know widths alone, so where both have the same width it acts on both."),
                widget(HypernetworkSpec, "dropout", expert=True,
                       tooltip="Switches hidden numbers off at random while training; 0.1 to 0.3 counters overfitting. The "
                               "file has none, so images are not noisy."),
                widget(HypernetworkSpec, "initialization", expert=True,
                       tooltip="Distribution of the first weights of all layers but the last, which is zero, so that "
                               "training begins at the base. normal is usual; kaiming suits relu, xavier tanh and sigmoid."),
                *batch_inputs(),
                *prior_inputs(),
                *flow_inputs(),
            ],
            outputs=[
                sockets.FileName.Output(display_name="hypernetwork_name",
                                      tooltip="The file's name: connect it to hypernetwork_name of HypernetworkLoader."),
                sockets.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.String.Output(display_name="summary", tooltip="What was trained, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.losses_of_files(inputs.get("name"))

    @classmethod
    def execute(cls, base: BaseModelSpec, dataset: DatasetSpec, name: str, layer_structure, activation, layer_norm=False,
                activate_output=False, attention_layers="all", dropout=0.0, initialization="normal", **widgets):
        choice = choose("hypernetwork", base, dataset, widgets)
        method = checked(
            HypernetworkSpec, layer_structure=parse_structure(layer_structure), activation=activation,
            layer_norm=layer_norm, activate_output=activate_output, widths=attention_layers, dropout=dropout,
            initialization=initialization)
        spec = make_spec(base, dataset, name, method, **choice.widgets)
        finished = run_training.run_training(spec, cls.hidden.unique_id, lambda run, report: host.unloaded_widths(
            run.artifact, report.widths), choice.lines)
        file, report = finished.names["hypernetwork"], finished.report
        trained = ", ".join(str(width) for width in report.widths)
        summary = finished.summarize(
            f"{file}: loads in ComfyUI for the widths {trained}",
            f"Layers {layer_structure.strip()}, {activation}{', layer norm' if layer_norm else ''}, "
            f"{report.parameters} parameters, {report.bytes / 1e6:.2f} MB.",
        )
        finished.show(summary)
        return io.NodeOutput(file, {"loss": finished.run.losses()}, summary,
                             ui={"text": [summary], "hypernetwork": [file], "images": finished.images(),
                                 **choice.for_page})


def parse_structure(text: str) -> tuple[float, ...]:
    """"1, 2, 1" as numbers. Raises UserError."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"layer_structure is {text!r}, which is no list of numbers. Type numbers with commas between "
                        "them, for example 1, 2, 1.") from None
