"""Tools that make LoRA files out of LoRA files."""
from pathlib import Path
from typing import get_args

from comfy_api.latest import io
from safetensors.torch import load_file

from ...trainers.drawing.extraction_report import residual, spread
from ...trainers.errors import UserError
from ...trainers.families.recognition import fingerprint_of
from ...trainers.reports import ConversionReport, MergeReport, MetadataReport
from ...trainers.run_folder import Run
from ...trainers.spec import checked
from ...trainers.spec.file_tasks import ConvertSpec, LoraInput, MergeSpec, MetadataSpec, Rule
from ...trainers.words import counted
from .. import host, sockets
from ..widgets import Schema, widget
from .make_file import CATEGORY, device, make, name_input, threshold_input

NONE = "(none)"
PRECISIONS = ["fp16", "bf16", "fp32", "fp8", "int8"]
PRECISION_HELP = ("Precision of the file. fp8 and int8 halve it once more; they load in ComfyUI as they are, and cost "
                  "about 4 % (fp8) or 1 % (int8) of what the LoRA changes.")


def lora_input(name: str, tooltip: str, none: bool = False) -> io.Combo.Input:
    return io.Combo.Input(name, options=[*([NONE] if none else []), *host.lora_choices()], tooltip=tooltip)


def strength_input(name: str):
    return widget(LoraInput, "model", name=name, step=0.05,
                  tooltip="1 adds the LoRA as it is, 0.5 half of it, below 0 subtracts it.")


def lora_outputs() -> list:
    return [
        sockets.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA."),
        sockets.FileName.Output(display_name="lora_name", tooltip="The file's name, for the lora_name of any LoRA loader."),
        sockets.LoraStack.Output(display_name="lora_stack", tooltip="For nodes that take a LoRA stack."),
        io.String.Output(display_name="summary", tooltip="What was made."),
    ]


def lora_output(made: host.Made, lines: list[str]) -> io.NodeOutput:
    name, summary = made.names["lora"], "\n".join([*lines, *made.notes()])
    made.progress.show(summary, 1, 1)
    return io.NodeOutput(load_file(made.file), name, [(name, 1.0, 1.0)], summary, ui={"text": [summary], "lora": [name]})


def common(name: str) -> dict:
    return dict(name=name.strip(), folders=host.run_folders(), device=device())


def rows_of(stack) -> list[LoraInput]:
    """The rows of a LORA_STACK. Raises UserError for one that weighs blocks: a file has no place for that."""
    rows = []
    for entry in stack or []:
        name, model, text = entry[:3]
        row = getattr(entry, "row", None)
        if not getattr(row, "plain", True):
            raise UserError(f"{name!r} has block weights in the stack, which are not merged into a file. Remove them, or "
                            "apply the stack with Apply LoRA Stack.")
        if name != "None":
            rows.append(checked(LoraInput, path=str(host.chosen_lora(name)), model=model, text=text))
    return rows


def chosen_rows(chosen, stack) -> list[LoraInput]:
    """Rows of (LoRA, strength) pairs, those that are (none) left out, and then those of a LORA_STACK."""
    return rows_of([*((lora, strength, strength) for lora, strength in chosen if lora != NONE), *(stack or [])])


def files_changed(names) -> list[str]:
    """For fingerprint_inputs: changes when one of the chosen LoRAs does."""
    paths = [host.chosen_lora(name) for name in names if name and name != NONE]
    return [fingerprint_of(path) for path in paths]


class MergeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneMergeLoras",
            display_name="Merge LoRAs",
            category=CATEGORY,
            search_aliases=("svd merge", "combine loras", "add loras"),
            description="Several LoRAs as one file: added, subtracted, scaled. exact keeps everything and adds the ranks; "
                        "the other rank methods cut the sum to its best approximation of a smaller rank.",
            is_output_node=True,
            inputs=[
                lora_input("lora_a", "The first LoRA; (none) if all come from the stack.", none=True),
                strength_input("strength_a"),
                lora_input("lora_b", "The second LoRA, or (none).", none=True),
                strength_input("strength_b"),
                name_input("merged", "output/loras"),
                widget(MergeSpec, "rule", name="rank_method",
                       tooltip="exact: nothing is lost, and ranks add up. fixed: rank. energy: the smallest rank that keeps "
                               "threshold of the sum. ratio: singular values above 1 ÷ threshold of the largest. knee: "
                               "where their curve bends."),
                widget(MergeSpec, "rank", tooltip="The rank, or the most; not read with exact."),
                threshold_input(MergeSpec),
                io.Combo.Input("file_precision", options=PRECISIONS, default="fp16", tooltip=PRECISION_HELP),
                sockets.LoraStack.Input("lora_stack", optional=True,
                                      tooltip="Any number of LoRAs with their own strengths, added to both above."),
            ],
            outputs=lora_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [files_changed([inputs.get("lora_a"), inputs.get("lora_b")]), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, lora_a, strength_a, lora_b, strength_b, name, rank_method, rank, threshold, file_precision,
                lora_stack=None):
        rows = chosen_rows(((lora_a, strength_a), (lora_b, strength_b)), lora_stack)
        if not rows:
            raise UserError("No LoRA is chosen. Choose lora_a and lora_b, or connect a lora_stack.")
        spec = checked(MergeSpec, loras=tuple(rows), rule=rank_method, rank=rank, threshold=threshold,
                       file_precision=file_precision, **common(name))
        made = make(spec, MergeReport, cls.hidden.unique_id)
        return lora_output(made, describe_merge(made, counted(len(rows), "LoRA")))


class ResizeLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneResizeLora",
            display_name="Resize LoRA",
            category=CATEGORY,
            search_aliases=("svd", "reduce rank", "lora size"),
            description="The best approximation of a LoRA with a smaller rank, or the smallest rank that keeps enough; also "
                        "scales it, and turns LoHa and LoKr into plain LoRA.",
            is_output_node=True,
            inputs=[
                lora_input("lora", "The LoRA to resize."),
                name_input("resized", "output/loras"),
                io.Combo.Input("rank_method", options=[rule for rule in get_args(Rule) if rule != "exact"], default="energy",
                               tooltip="fixed: rank. energy: the smallest rank that keeps threshold of the LoRA, for "
                                       "example 0.95. ratio: singular values above 1 ÷ threshold of the largest. knee: "
                                       "where their curve bends."),
                widget(MergeSpec, "rank", tooltip="The rank, or the most that rank_method may choose."),
                threshold_input(MergeSpec, default=0.95),
                strength_input("strength"),
                io.Combo.Input("file_precision", options=PRECISIONS, default="fp16", tooltip=PRECISION_HELP),
            ],
            outputs=lora_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [files_changed([inputs.get("lora")]), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, lora, name, rank_method, rank, threshold, strength, file_precision):
        spec = checked(MergeSpec, loras=tuple(rows_of([(lora, strength, strength)])), rule=rank_method, rank=rank,
                       threshold=threshold, file_precision=file_precision, **common(name))
        made = make(spec, MergeReport, cls.hidden.unique_id)
        return lora_output(made, describe_merge(made, lora))


def describe_merge(made: host.Made[MergeReport], source: str) -> list[str]:
    report = made.report
    return [
        f"{made.names['lora']}: {source} as {counted(report.layers, 'layer')} of rank {spread(report.ranks)}.",
        f"Keeps {report.kept:.2%} of the energy; what is left out is {residual(report.kept):.1%} of its length.",
        f"{report.bytes / 1e6:.2f} MB in {report.precision}.",
    ]


class ConvertLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneConvertLora",
            display_name="Convert LoRA",
            category=CATEGORY,
            search_aliases=("kohya", "diffusers", "peft", "format"),
            description="A LoRA under the names of other programs (kohya, diffusers and PEFT, ComfyUI) or in another "
                        "precision. The summary says how exact the result is.",
            is_output_node=True,
            inputs=[
                lora_input("lora", "The LoRA to convert."),
                name_input("converted", "output/loras"),
                widget(ConvertSpec, "names", name="key_format",
                       tooltip="kohya: every program reads it. diffusers: lora_A and lora_B, for diffusers and PEFT. "
                               "comfyui: the names of ComfyUI's own Save LoRA."),
                io.Combo.Input("file_precision", options=["same", *PRECISIONS], default="same", tooltip=PRECISION_HELP),
                sockets.Base.Input("base", optional=True,
                                 tooltip="The model that the LoRA is for. Only needed for models of unusual size, such as "
                                         "the demo base: the names of the layers are read from it."),
            ],
            outputs=lora_outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [files_changed([inputs.get("lora")]), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, lora, name, key_format, file_precision, base=None):
        spec = checked(ConvertSpec, lora=str(host.chosen_lora(lora)), base=base.path if base else "", names=key_format,
                       file_precision=file_precision, **common(name))
        models = [Path(each) for each in (base.path, base.configs) if each] if base else []

        def unloaded(run: Run, report: ConversionReport) -> list[str] | None:
            return host.unloaded_lora_keys(load_file(run.artifact), report.family, *models)

        # ComfyUI does not know peft's names of attentions; such files are for other programs.
        foreign = key_format == "diffusers"
        made = make(spec, ConversionReport, cls.hidden.unique_id,
                    (lambda run, report: None) if foreign or base is None else unloaded)
        report, left = made.report, (unloaded(made.run, made.report) or []) if foreign else []
        note = [f"For diffusers and PEFT: ComfyUI's own LoRA loader does not know {len(left)} of its {report.keys} keys."]
        exact = "exactly what it was" if report.error < 1e-7 else f"off by {report.error:.3%} of what it changes"
        precision = "its own precision" if file_precision == "same" else file_precision
        return lora_output(made, [
            f"{made.names['lora']}: {counted(report.layers, 'layer')} under {report.names} names in {precision}, "
            f"{exact}.",
            f"{report.bytes / 1e6:.2f} MB instead of {report.before / 1e6:.2f} MB.",
            *(note if left else []),
        ])


class EditLoraMetadata(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneEditLoraMetadata",
            display_name="Edit LoRA Metadata",
            category=CATEGORY,
            search_aliases=("trigger words", "modelspec", "ss_tag_frequency"),
            description="Writes title, author, description, trigger words and tags into a copy of a LoRA, and can forget "
                        "what tells of the training images before a file is shared. Weights and hash stay the same.",
            is_output_node=True,
            inputs=[
                lora_input("lora", "The LoRA to edit. It stays as it is; a copy is written."),
                name_input("edited", "output/loras"),
                io.String.Input("trigger_words", default="", tooltip="Words that call the LoRA, as managers show them. "
                                                                     "Empty: as they are."),
                io.String.Input("title", default="", tooltip="Empty: as it is."),
                io.String.Input("author", default="", tooltip="Empty: as it is."),
                io.String.Input("description", default="", multiline=True, tooltip="Empty: as it is."),
                io.String.Input("tags", default="", tooltip="Separated by commas. Empty: as they are."),
                io.String.Input("other_entries", default="", multiline=True,
                                tooltip="Any entries, one a line: name = text. name = removes the entry."),
                widget(MetadataSpec, "forget_training", name="remove_training_metadata",
                       tooltip="Removes captions' tags, folder names, learning rates and all else that tells of the "
                               "training. What programs need to recognize the file stays."),
            ],
            outputs=[*lora_outputs(), io.String.Output(display_name="metadata", tooltip="All entries as they are now.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [files_changed([inputs.get("lora")]), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, lora, name, trigger_words, title, author, description, tags, other_entries,
                remove_training_metadata):
        named = {"trigger_phrase": trigger_words, "title": title, "author": author, "description": description, "tags": tags}
        changes = [(f"modelspec.{field}", text.strip()) for field, text in named.items() if text.strip()]
        for line in filter(str.strip, other_entries.splitlines()):
            field, sign, text = line.partition("=")
            if not sign or not field.strip():
                raise UserError(f"other_entries holds the line {line!r}, which is not of the form: name = text.")
            changes.append((field.strip(), text.strip()))
        spec = checked(MetadataSpec, lora=str(host.chosen_lora(lora)), changes=tuple(changes),
                       forget_training=remove_training_metadata, **common(name))
        made = make(spec, MetadataReport, cls.hidden.unique_id)
        metadata = made.report.metadata
        output = lora_output(made, [f"{made.names['lora']}: {len(metadata)} entries; the weights are those of {lora}."])
        listing = "\n".join(f"{field} = {text}" for field, text in sorted(metadata.items()))
        return io.NodeOutput(*output.args, listing, ui=output.ui)
