"""Tools that make checkpoints, and models for other programs, out of checkpoints and LoRA files."""
from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.optional_packages import require_modules
from ...trainers.reports import BakeReport, OnnxReport, ShardReport
from ...trainers.spec import checked
from ...trainers.spec.file_tasks import BakeSpec, OnnxSpec, ShardSpec
from ...trainers.words import counted
from .. import host, sockets
from ..base_model.base_model import load_line
from ..widgets import Schema, widget
from .change_loras import chosen_rows, common, files_changed, lora_input, strength_input
from .make_file import CATEGORY, make, name_input


class BakeLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneBakeLoras",
            display_name="Bake LoRAs into Checkpoint",
            category=CATEGORY,
            search_aliases=("merge lora into checkpoint", "fuse lora"),
            description="Works a stack of LoRAs into a checkpoint's weights and saves it, one layer in memory at a time. "
                        "Generates what base and LoRAs generate together, without loading them.",
            is_output_node=True,
            inputs=[
                sockets.Base.Input("base", tooltip="The model: Base Model or Load Demo Base."),
                lora_input("lora", "A LoRA to bake in; (none) if all come from the stack.", none=True),
                strength_input("strength"),
                name_input("baked", "output/checkpoints"),
                io.Combo.Input("file_precision", options=["same", "fp16", "bf16", "fp32"], default="same",
                               tooltip="Precision of the checkpoint. same: the base's own; a diffusers folder is "
                                       "saved in fp16."),
                sockets.LoraStack.Input("lora_stack", optional=True,
                                        tooltip="Any number of LoRAs with their own strengths."),
            ],
            outputs=[
                sockets.Base.Output(display_name="base", tooltip="The checkpoint as a base for Train nodes."),
                sockets.FileName.Output(display_name="ckpt_name", tooltip="For the ckpt_name of Load Checkpoint."),
                io.String.Output(display_name="summary", tooltip="What was baked, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [files_changed([inputs.get("lora")]), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, base, lora, strength, name, file_precision, lora_stack=None):
        rows = chosen_rows([(lora, strength)], lora_stack)
        if not rows:
            raise UserError("No LoRA is chosen. Choose one, or connect a lora_stack.")
        spec = checked(BakeSpec, base=base.path, loras=tuple(rows), file_precision=file_precision, **common(name))
        made = make(spec, BakeReport, cls.hidden.unique_id, lambda run, report: host.unloaded_tensors(run.artifact, base))
        ckpt_name, report = made.names["checkpoint"], made.report
        summary = "\n".join([
            f"{load_line(ckpt_name, [made.run.artifact], report.keys)}.",
            f"{', '.join(report.loras)} in {counted(report.layers, 'layer')} of {base.name}, "
            f"{report.bytes / 1e9:.2f} GB.",
            *made.notes(),
        ])
        made.progress.show(summary, 1, 1)
        return io.NodeOutput(host.base_of(ckpt_name, base), ckpt_name, summary,
                             ui={"text": [summary], "checkpoint": [ckpt_name]})


class ShardCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneShardCheckpoint",
            display_name="Split or Join Checkpoint",
            category=CATEGORY,
            search_aliases=("shards", "split file", "join file"),
            description="Splits a checkpoint into shards of a given size, for uploads, or joins the shards of an index into "
                        "one file. Weights stay bit for bit as they are.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("checkpoint", options=[*host.base_files(), *host.shard_choices()],
                               tooltip="A checkpoint to split, or the index of shards (index/…) to join."),
                name_input("shards", "the folder of the run, or, joined, in output/checkpoints"),
                widget(ShardSpec, "shard_size", step=0.1,
                       tooltip="Largest size of a file in GB. 0 joins: everything in one file."),
            ],
            outputs=[io.String.Output(display_name="summary", tooltip="The files, and where they lie.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.losses_of_files(inputs.get("name"))

    @classmethod
    def execute(cls, checkpoint, name, shard_size):
        path = host.shard_index(checkpoint) if checkpoint.startswith("index/") else host.base_path(checkpoint)
        spec = checked(ShardSpec, checkpoint=str(path), shard_size=shard_size, **common(name))
        made = make(spec, ShardReport, cls.hidden.unique_id)
        if "checkpoint" in made.names:
            where = f"{made.names['checkpoint']} in output/checkpoints"
        else:
            files = ", ".join(file.name for file in made.report.files)
            where = f"{files} in output/finetune/{made.run.name}"
        summary = f"{where}: {made.report.keys} tensors, {made.report.bytes / 1e9:.2f} GB."
        made.progress.show(summary, 1, 1)
        return io.NodeOutput(summary, ui={"text": [summary]})


class ExportOnnx(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneExportOnnx",
            display_name="Export to ONNX",
            category=CATEGORY,
            search_aliases=("onnxruntime", "export"),
            description="Saves a base's denoiser (UNet), with a stack of LoRAs worked in, as an ONNX file, "
                        "for other programs, and proves with onnxruntime that it computes the same.",
            is_output_node=True,
            inputs=[
                sockets.Base.Input("base", tooltip="The model: Base Model or Load Demo Base."),
                lora_input("lora", "A LoRA to work in; (none) for the base alone or a stack alone.", none=True),
                strength_input("strength"),
                name_input("exported", "the folder of the run"),
                widget(OnnxSpec, "file_precision",
                       tooltip="Precision of the file. fp16 is half the size and meant for GPUs."),
                sockets.LoraStack.Input("lora_stack", optional=True,
                                        tooltip="Any number of LoRAs with their own strengths."),
            ],
            outputs=[io.String.Output(display_name="summary", tooltip="The file, where it lies, how exact it is.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [files_changed([inputs.get("lora")]), host.losses_of_files(inputs.get("name"))]

    @classmethod
    def execute(cls, base, lora, strength, name, file_precision, lora_stack=None):
        require_modules("Exporting to ONNX", onnx="onnx", onnxruntime="onnxruntime")
        rows = chosen_rows([(lora, strength)], lora_stack)
        spec = checked(OnnxSpec, base=base.path, configs=base.configs, loras=tuple(rows),
                       file_precision=file_precision, **common(name))
        made = make(spec, OnnxReport, cls.hidden.unique_id)
        report = made.report
        files = " and ".join(file.name for file in report.files)
        summary = "\n".join([
            f"{files} in output/finetune/{made.run.name}: {report.bytes / 1e9:.2f} GB in {report.precision}.",
            f"onnxruntime computes what the engine computes, to {report.error:.1e} of the largest value.",
            f"Inputs: {', '.join(report.inputs)}. LoRAs worked in: {', '.join(report.loras) or 'none'}.",
            *made.notes(),
        ])
        made.progress.show(summary, 1, 1)
        return io.NodeOutput(summary, ui={"text": [summary]})
