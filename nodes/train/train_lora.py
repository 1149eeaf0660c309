"""The Train LoRA node."""
from comfy_api.latest import io
from safetensors.torch import load_file

from ...trainers.families.component_configs import component_config
from ...trainers.families.presets import recommended
from ...trainers.spec import MAXIMUM_SEED, LoraSpec, MemorySpec, ObjectiveSpec, RunSpec, checked
from ...trainers.words import counted
from .. import host, sockets
from . import run_training
from .run_training import advanced, late_batch_inputs, prior_inputs, watching_inputs

CUSTOM, RECOMMENDED = "custom", "recommended for the base"


def adapter_inputs() -> list:
    """The kind of adapter, and control by layer."""
    return [
        advanced(io.Combo.Input("adapter", options=["lora", "dora", "loha", "lokr"], default="lora", optional=True,
                                tooltip="lora: the usual. dora: learns lengths of columns too; for low ranks; slower. loha, "
                                        "lokr: other products of small matrices (LyCORIS), slower to learn: raise the "
                                        "learning rate 3 to 10 times. lokr files are tiny.")),
        advanced(io.Int.Input("convolution_rank", default=0, min=0, max=1024, optional=True,
                              tooltip="Rank of 3×3 convolutions, for targets: all with convolutions (LoCon). A quarter or "
                                      "half of the rank keeps files small. 0: the same as rank.")),
        advanced(io.Float.Input("convolution_alpha", default=0.0, min=0.0, max=4096.0, step=0.5, optional=True,
                                tooltip="Alpha of 3×3 convolutions. 0: as strong for their rank as alpha is for rank.")),
        advanced(io.String.Input("block_ranks", default="", optional=True,
                                 tooltip="Other ranks for blocks of the model, for example: down=4, mid=16, up.1=8. 0 "
                                         "leaves a block out. Blocks: down.0, down.1, …, mid, up.0, …; down means all "
                                         "of that side.")),
        advanced(io.String.Input("block_rates", default="", optional=True,
                                 tooltip="Factors of the learning rate for blocks: down=0.5, up.1=2.")),
        advanced(io.Float.Input("plus_ratio", default=1.0, min=1.0, max=1000.0, step=1.0, optional=True,
                                tooltip="LoRA+: how many times faster the up matrices learn. 4 to 16 learns in fewer "
                                        "steps; 1 is plain LoRA. For lora and dora.")),
        advanced(io.Boolean.Input("rank_stabilized", default=False, optional=True,
                                  tooltip="The LoRA acts with alpha ÷ √rank instead of alpha ÷ rank, so that high ranks "
                                          "do not learn more weakly. For lora and dora.")),
        advanced(io.Int.Input("kronecker_factor", default=-1, min=-1, max=1024, optional=True,
                              tooltip="lokr: size of the small matrix. -1: both about equal, the smallest file; 4 to 16 "
                                      "can learn more and make larger files.")),
    ]


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneTrainLora",
            display_name="Train LoRA",
            category="FineTune/train",
            description="Trains a LoRA in a process of its own. Cancel saves what was learned; queueing the same graph "
                        "again goes on from there, and returns at once when the run is finished. Any changed setting "
                        "is a new run; nothing is overwritten.",
            is_output_node=True,
            inputs=[
                sockets.Base.Input("base", tooltip="The model to train on: Base Model or Load Demo Base."),
                sockets.Dataset.Input("dataset", tooltip="Images with captions: Load Image Dataset."),
                io.String.Input("name", default="my_lora",
                                tooltip="Names the run and the file in output/loras. A name that is taken by another "
                                        "run gets -2, -3, …"),
                io.Combo.Input("preset", options=[CUSTOM, RECOMMENDED], default=CUSTOM,
                               tooltip="custom: the numbers below count. recommended for the base: steps, learning "
                                       "rates, rank, alpha, targets, batch_size, resolution, preview_every and min-SNR come "
                                       "from published recipes for the base, and those widgets are not read; the node says "
                                       "which numbers are used."),
                io.Int.Input("steps", default=1500, min=1, max=1_000_000,
                             tooltip="Optimizer steps. 50 to 100 per image is a start for a subject or style."),
                io.Float.Input("learning_rate", default=1e-4, min=1e-8, max=10.0, step=1e-6,
                               tooltip="1e-4 is usual for LoRA, 1 with the optimizer prodigy. Too high: images break or "
                                       "the loss becomes NaN."),
                io.Int.Input("rank", default=16, min=1, max=1024,
                             tooltip="Size of the LoRA. 4 to 16 for a style or subject, 32 and more for many concepts."),
                io.Float.Input("alpha", default=16.0, min=0.01, max=4096.0, step=0.5,
                               tooltip="The LoRA acts with alpha ÷ rank. Keep it equal to the rank, or half of it."),
                io.Combo.Input("targets", default="attention",
                               options=["attention", "attention and feed-forward", "all with convolutions", "pattern"],
                               tooltip="Which layers get an adapter. More layers learn more and make larger files."),
                io.Int.Input("batch_size", default=1, min=1, max=1024,
                             tooltip="Images at once. Larger is steadier and needs more memory."),
                io.Int.Input("resolution", default=512, min=64, max=4096, step=8,
                             tooltip="Pixels of a square image's side; other shapes get about the same area. SD 1.x "
                                     "512, SD 2.x 768, SDXL 1024, demo base 64."),
                io.Float.Input("text_encoder_learning_rate", default=0.0, min=0.0, max=10.0, step=1e-6,
                               tooltip="Above 0 the text encoder learns too, at about a half to a tenth of the learning "
                                       "rate. Helps new words; needs more memory."),
                io.Combo.Input("precision", options=["auto", "bf16", "fp16", "fp32"], default="auto",
                               tooltip="Precision of the frozen base and the arithmetic; the LoRA itself stays fp32. "
                                       "auto: bf16 where the GPU has it, else fp16; fp32 on the CPU."),
                io.Boolean.Input("gradient_checkpointing", default=False,
                                 tooltip="Needs much less memory and about a quarter more time."),
                io.String.Input("preview_prompts", default="", multiline=True,
                                tooltip="One prompt a line. An image of each is drawn during training and shown here."),
                io.Int.Input("preview_every", default=100, min=0, max=1_000_000,
                             tooltip="Steps between previews; 0 for none."),
                io.Int.Input("checkpoint_every", default=250, min=0, max=1_000_000,
                             tooltip="Steps between checkpoints, from which a killed run goes on. 0: only on cancel."),
                # Not "seed": frontends put a randomize control beside that, and every queue would be a new run.
                io.Int.Input("training_seed", default=0, min=0, max=MAXIMUM_SEED,
                             tooltip="Another seed is another run, with other noise and another order of images."),
                sockets.Optimizer.Input("optimizer", optional=True, tooltip="Default: AdamW, weight decay 0.01."),
                sockets.Schedule.Input("schedule", optional=True, tooltip="Default: constant, no warm-up."),
                sockets.Objective.Input("objective", optional=True, tooltip="Default: no loss weighting, no noise offset."),
                advanced(io.Int.Input("accumulation", default=1, min=1, max=1024, optional=True,
                                      tooltip="Batches per step: the effect of a larger batch without its memory.")),
                advanced(io.Float.Input("dropout", default=0.0, min=0.0, max=0.95, step=0.05, optional=True,
                                        tooltip="Dropout inside the LoRA; 0.1 counters overfitting on few images.")),
                advanced(io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                                        tooltip="Share of captions left out; 0.05 to 0.1 makes the LoRA act without "
                                                "its trigger too.")),
                advanced(io.Boolean.Input("buckets", default=True, optional=True,
                                          tooltip="Keep the images' shapes. Off: every image is cropped square.")),
                advanced(io.String.Input("target_pattern", default="", optional=True,
                                         tooltip="Regular expression over layer names, for targets: pattern. Example: "
                                                 "attn2\\.to_[kv]$")),
                advanced(io.Combo.Input("file_precision", options=["fp16", "bf16", "fp32"], default="fp16",
                                        optional=True, tooltip="Precision of the saved file.")),
                *prior_inputs(),
                *watching_inputs(),
                *late_batch_inputs(),
                *adapter_inputs(),
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
    def execute(cls, base, dataset, name, **widgets):
        chosen = recommendation(base, dataset, widgets)
        spec = make_spec(base, dataset, name, **{**widgets, **chosen})
        lines = [recommendation_line(spec)] if chosen else []
        finished = run_training.run_training(spec, cls.hidden.unique_id, lambda run, report: host.unmatched_keys(
            load_file(run.artifact), base.family, component_config(base, "unet"), component_config(base, "text_encoder")),
            lines)
        lora_name, report, method = finished.names["lora"], finished.report, spec.method
        summary = finished.summarize(
            f"{lora_name}: loads in ComfyUI with all {report['keys']} keys of {counted(report['layers'], 'layer')}",
            f"{describe(method)}, {report['bytes'] / 1e6:.2f} MB.", *lines,
        )
        finished.show(summary)
        return io.NodeOutput(
            load_file(finished.path("lora")), {"loss": finished.run.losses()}, lora_name, [(lora_name, 1.0, 1.0)], summary,
            ui={"text": [summary], "lora": [lora_name], "images": finished.images(),
                **({"finetune_used": [shown(chosen)]} if chosen else {})},
        )


RECOMMENDED_FIELDS = ("steps", "learning_rate", "rank", "alpha", "targets", "batch_size", "resolution",
                      "text_encoder_learning_rate", "preview_every")
"""Widgets that the preset sets, by the names that they and the recipes share."""


def recommendation(base, dataset, widgets: dict) -> dict:
    """What the preset chooses instead of the widgets; nothing with custom."""
    if widgets.pop("preset") != RECOMMENDED:
        return {}
    recipe = recommended(base, len(dataset.images))
    objective = widgets.get("objective") or checked(ObjectiveSpec, min_snr_gamma=recipe.min_snr_gamma)
    return {**{field: getattr(recipe, field) for field in RECOMMENDED_FIELDS}, "objective": objective}


def shown(chosen: dict) -> dict:
    """The numbers for the page, which puts them into the widgets that were not read."""
    return {name: value for name, value in chosen.items() if name in RECOMMENDED_FIELDS}


def recommendation_line(spec: RunSpec) -> str:
    """What is used, while it runs and afterwards, because the widgets show other numbers."""
    method, run, previews = spec.method, spec.training, spec.previews
    images = "image" if run.batch_size == 1 else "images"
    every = f"previews every {previews.every} steps" if previews.every else "no previews"
    text = f", text encoder {method.text_encoder_learning_rate:g}" if method.text_encoder_learning_rate else ""
    return (f"Recommended for this base and used instead of the widgets: {run.steps} steps of {run.batch_size} {images}, "
            f"{run.resolution} px, learning rate {spec.optimizer.learning_rate:g}{text}, rank {method.rank}, "
            f"alpha {method.alpha:g}, {method.targets}, min-SNR {spec.objective.min_snr_gamma:g}, {every}.")


def describe(method: LoraSpec) -> str:
    """The adapters in words: their kind if it is another than LoRA, and what differs from the usual."""
    parts = [] if method.adapter == "lora" else [{"dora": "DoRA", "loha": "LoHa", "lokr": "LoKr"}[method.adapter]]
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


def make_spec(base, dataset, name, steps, learning_rate, rank, alpha, targets, resolution,
              text_encoder_learning_rate, precision, gradient_checkpointing, objective=None, memory=None, dropout=0.0,
              target_pattern="", file_precision="fp16", adapter="lora", convolution_rank=0, convolution_alpha=0.0,
              block_ranks="", block_rates="", plus_ratio=1.0, rank_stabilized=False, kronecker_factor=-1,
              **widgets) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    method = checked(LoraSpec, rank=rank, alpha=alpha, dropout=dropout, targets=targets, pattern=target_pattern,
                     text_encoder_learning_rate=text_encoder_learning_rate, file_precision=file_precision,
                     adapter=adapter, convolution_rank=convolution_rank, convolution_alpha=convolution_alpha,
                     block_ranks=block_ranks, block_rates=block_rates, plus_ratio=plus_ratio,
                     rank_stabilized=rank_stabilized, kronecker_factor=kronecker_factor)
    memory = memory or checked(MemorySpec, precision=precision, gradient_checkpointing=gradient_checkpointing)
    return run_training.make_spec(base, dataset, name, method, steps=steps, learning_rate=learning_rate,
                              resolution=resolution, objective=objective, memory=memory, **widgets)
