"""The Extract LoRA node."""
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from safetensors.torch import load_file

from ...trainers.drawing.extraction_report import FILE, residual, spread, table
from ...trainers.errors import UserError
from ...trainers.families.recognition import fingerprint_of
from ...trainers.reports import ExtractionReport
from ...trainers.spec import BaseModelSpec, checked
from ...trainers.spec.file_tasks import ExtractionSpec
from ...trainers.words import counted
from .. import host, sockets
from ..widgets import Schema, advanced, fields_of, widget
from .make_file import CATEGORY, DEVICES, device, loads, make, name_input, threshold_input

RULE_HELP = ("How the rank of each layer is found. fixed: rank. energy: the smallest that keeps threshold of the change, "
             "for example 0.9. ratio: singular values above 1 ÷ threshold of the largest, for example 10. knee: where their "
             "curve bends. rank is the most in every case.")
EXTRACTION_FIELDS = {"rank_method": "rule", "clamp_quantile": "clamp", "exact_svd": "exact"}
"""Widget → field of the spec, where their names differ."""


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneExtractLora",
            display_name="Extract LoRA",
            category=CATEGORY,
            search_aliases=("svd", "lora from checkpoint", "difference", "lycoris extract"),
            description="Makes a LoRA of what a tuned model (DreamBooth, a fine-tuned checkpoint) changed in its base. Both "
                        "are read one layer at a time. The report shows what the LoRA keeps of the change, block by block.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("tuned", options=[host.CONNECTED, *host.base_choices()], default=host.CONNECTED,
                               tooltip="The tuned model. (connected): tuned_base or tuned_model is connected."),
                io.Combo.Input("original", options=[host.CONNECTED, *host.base_choices()], default=host.CONNECTED,
                               tooltip="The model that it was tuned from. (connected): original_base or original_model is "
                                       "connected."),
                name_input("extracted", "output/loras"),
                widget(ExtractionSpec, "rule", name="rank_method", tooltip=RULE_HELP),
                widget(ExtractionSpec, "rank",
                       tooltip="Rank of every layer, or the most that rank_method may choose. 32 to 128 are usual."),
                threshold_input(ExtractionSpec),
                widget(ExtractionSpec, "text_encoders", tooltip="Extract the text encoders too, where they differ."),
                widget(ExtractionSpec, "convolutions",
                       tooltip="Extract 3×3 convolutions too. Off makes a smaller file that keeps less."),
                io.Combo.Input("file_precision", options=["fp16", "bf16", "fp32"], default="fp16",
                               tooltip="Precision of the file. The report compares all three."),
                sockets.Base.Input("tuned_base", optional=True, tooltip="For example the base output of Train DreamBooth."),
                sockets.Base.Input("original_base", optional=True, tooltip="Base Model or Load Demo Base."),
                io.Model.Input("tuned_model", optional=True,
                               tooltip="A model of the graph, with everything that is applied to it: merges, LoRAs."),
                io.Clip.Input("tuned_clip", optional=True,
                              tooltip="Its text encoder; leave it out to extract the model only."),
                io.Model.Input("original_model", optional=True, tooltip="The model that it shall be compared with."),
                io.Clip.Input("original_clip", optional=True, tooltip="Its text encoder."),
                widget(ExtractionSpec, "convolution_rank", expert=True,
                       tooltip="Rank, or the most, of 3×3 convolutions. 0: the same as rank."),
                widget(ExtractionSpec, "clamp", name="clamp_quantile", lowest=0.5, step=0.001, expert=True,
                       tooltip="Quantile at which outliers of the factors are cut off. 1 cuts nothing; 0.99 is what other "
                               "tools do."),
                widget(ExtractionSpec, "exact", name="exact_svd", expert=True,
                       tooltip="Decompose large layers exactly instead of by random sketches: many times slower, and better "
                               "by less than half a percent."),
                advanced(io.Combo.Input("device", options=DEVICES, default="auto", optional=True,
                                        tooltip="Where the layers are decomposed. auto: the GPU if there is one.")),
            ],
            outputs=[
                sockets.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA."),
                sockets.FileName.Output(display_name="lora_name",
                                      tooltip="The file's name: connect it to the lora_name of any LoRA loader."),
                sockets.LoraStack.Output(display_name="lora_stack", tooltip="For nodes that take a LoRA stack."),
                io.Image.Output(display_name="report", tooltip="What the LoRA keeps, by block, precision and layer."),
                io.String.Output(display_name="table", tooltip="The same as text."),
                io.String.Output(display_name="summary", tooltip="What was extracted, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        chosen = [inputs.get(side) for side in ("tuned", "original")]
        paths = [host.base_path(choice) for choice in chosen if choice and choice != host.CONNECTED]
        return [*(fingerprint_of(path) for path in paths), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, tuned, original, name, tuned_base=None, original_base=None, tuned_model=None, tuned_clip=None,
                original_model=None, original_clip=None, device="auto", **widgets):
        if (tuned_clip is None) != (original_clip is None):
            raise UserError("Only one of tuned_clip and original_clip is connected. Connect both, or none.")
        host.require_packages()
        with ExitStack() as stack:
            sides = [
                cls._side(stack, "tuned", tuned, tuned_base, tuned_model, tuned_clip),
                cls._side(stack, "original", original, original_base, original_model, original_clip),
            ]
            (tuned_path, tuned_name), (base_path, base_name) = sides
            spec = checked(ExtractionSpec, name=name.strip(), tuned=str(tuned_path), base=str(base_path),
                           tuned_name=tuned_name, base_name=base_name, folders=host.run_folders(),
                           device=chosen_device(device), **fields_of(widgets, EXTRACTION_FIELDS))
            configs = [Path(each.configs) for each in (tuned_base, original_base) if each is not None and each.configs]
            made = make(spec, ExtractionReport, cls.hidden.unique_id, lambda run, report: host.unloaded_lora_keys(
                load_file(run.artifact), report.family, base_path, tuned_path, *configs))
        lora_name, summary = made.names["lora"], summarize(made)
        made.progress.show(summary, 1, 1)
        chart = Image.open(made.run.folder / FILE).convert("RGB")
        image = torch.from_numpy(np.asarray(chart, np.float32) / 255)[None]
        return io.NodeOutput(
            load_file(made.file), lora_name, [(lora_name, 1.0, 1.0)], image, table(made.report), summary,
            ui={"text": [summary], "lora": [lora_name], "images": [host.saved_image(made.run.folder / FILE)]})

    @classmethod
    def _side(cls, stack: ExitStack, side: str, choice: str, base: BaseModelSpec | None, model, clip) -> tuple[Path, str]:
        """(file or folder, what people call it) of one of both models."""
        given = [each for each in (base, model) if each is not None]
        if choice != host.CONNECTED:
            if given:
                raise UserError(f"The {side} model is both chosen ({choice!r}) and connected. Set it to {host.CONNECTED}, "
                                "or disconnect the other.")
            return host.base_path(choice), choice
        if len(given) != 1:
            raise UserError(f"The {side} model is {'connected twice' if given else 'neither chosen nor connected'}. Choose "
                            f"a file, or connect either {side}_base or {side}_model.")
        if base is not None:
            return Path(base.path), base.name
        return stack.enter_context(host.saved_model(model, clip)), f"the connected {side} model"


def chosen_device(name: str) -> str:
    return device() if name == "auto" else name


def summarize(made: host.Made[ExtractionReport]) -> str:
    report = made.report
    kept, ranks = report.kept[report.precision], sorted(row.rank for row in report.rows)
    outside = report.left_out_energy / (report.change_norm ** 2 + report.left_out_energy)
    lines = [
        f"{made.names['lora']}: {loads(report)} of {counted(report.layers, 'layer')}.",
        f"Keeps {kept:.2%} of the change's energy; what is left out is {residual(kept):.1%} of its length.",
        f"Rank {spread(ranks)}, {report.bytes / 1e6:.2f} MB in {report.precision}; {report.unchanged} layers did "
        "not change.",
        f"Biases, norms and embeddings, which a LoRA cannot hold, are {outside:.2%} of the whole change's energy.",
    ]
    return "\n".join([*lines, *made.notes()])
