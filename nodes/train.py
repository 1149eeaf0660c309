"""The Train nodes: widgets → run spec → worker process → progress → outputs."""
from dataclasses import dataclass, field

from comfy_api.latest import io
from PIL import Image
from safetensors.torch import load_file

from ..trainers import families
from ..trainers.errors import UserError
from ..trainers.families.recognition import component_config
from ..trainers.files import write_json
from ..trainers.run import TrainingProcess
from ..trainers.runs import Run, open_run
from ..trainers.spec import (
    MAXIMUM_SEED,
    CheckpointSpec,
    FolderSpec,
    LoraSpec,
    ObjectiveSpec,
    OptimizerSpec,
    PreviewSpec,
    RunSpec,
    ScheduleSpec,
    TrainingSpec,
    checked,
)
from . import host, types

CUSTOM, RECOMMENDED = "custom", "recommended for the base"


def advanced(widget):
    """Mark a widget as advanced. The keyword for it is newer than the oldest host; this entry is read by all."""
    widget.extra_dict["advanced"] = True
    return widget


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneTrainLora",
            display_name="Train LoRA",
            category="FineTune/train",
            description="Trains a LoRA in a process of its own. Cancel saves what was learnt; queueing the same graph "
                        "again goes on from there, and returns at once when the run is finished. Any changed setting "
                        "is a new run; nothing is overwritten.",
            is_output_node=True,
            inputs=[
                types.Base.Input("base", tooltip="The model to train on: Base Model or Load Demo Base."),
                types.Dataset.Input("dataset", tooltip="Pictures with captions: Load Image Dataset."),
                io.String.Input("name", default="my_lora",
                                tooltip="Names the run and the file in output/loras. A name that is taken by another "
                                        "run gets -2, -3, …"),
                io.Combo.Input("preset", options=[CUSTOM, RECOMMENDED], default=CUSTOM,
                               tooltip="custom: the numbers below count. recommended for the base: steps, learning "
                                       "rates, rank, alpha, resolution and min-SNR come from published recipes for the "
                                       "base's family, and those widgets are not read; the summary shows the values."),
                io.Int.Input("steps", default=1500, min=1, max=1_000_000,
                             tooltip="Optimizer steps. 50 to 100 per picture is a start for a subject or style."),
                io.Float.Input("learning_rate", default=1e-4, min=1e-8, max=0.1, step=1e-6,
                               tooltip="1e-4 is usual for LoRA. Too high: pictures break or the loss becomes NaN."),
                io.Int.Input("rank", default=16, min=1, max=1024,
                             tooltip="Size of the LoRA. 4 to 16 for a style or subject, 32 and more for many concepts."),
                io.Float.Input("alpha", default=16.0, min=0.01, max=4096.0, step=0.5,
                               tooltip="The LoRA acts with alpha ÷ rank. Keep it equal to the rank, or half of it."),
                io.Combo.Input("targets", default="attention",
                               options=["attention", "attention and feed-forward", "all with convolutions", "pattern"],
                               tooltip="Which layers get an adapter. More layers learn more and make larger files."),
                io.Int.Input("batch_size", default=1, min=1, max=1024,
                             tooltip="Pictures at once. Larger is steadier and needs more memory."),
                io.Int.Input("resolution", default=512, min=64, max=4096, step=8,
                             tooltip="Pixels of a square picture's side; other shapes get about the same area. SD 1.x "
                                     "512, SD 2.x 768, SDXL 1024, demo base 64."),
                io.Float.Input("text_encoder_learning_rate", default=0.0, min=0.0, max=0.1, step=1e-6,
                               tooltip="Above 0 the text encoder learns too, at about a half to a tenth of the learning "
                                       "rate. Helps new words; needs more memory."),
                io.Combo.Input("precision", options=["auto", "bf16", "fp16", "fp32"], default="auto",
                               tooltip="Precision of the frozen base and the arithmetic; the LoRA itself stays fp32. "
                                       "auto: bf16 where the GPU has it, else fp16; fp32 on the CPU."),
                io.Boolean.Input("gradient_checkpointing", default=False,
                                 tooltip="Needs much less memory and about a quarter more time."),
                io.String.Input("preview_prompts", default="", multiline=True,
                                tooltip="One prompt a line. A picture of each is drawn during training and shown here."),
                io.Int.Input("preview_every", default=100, min=0, max=1_000_000,
                             tooltip="Steps between previews; 0 for none."),
                io.Int.Input("checkpoint_every", default=250, min=0, max=1_000_000,
                             tooltip="Steps between checkpoints, from which a killed run goes on. 0: only on cancel."),
                # Not "seed": frontends put a randomize control beside that, and every queue would be a new run.
                io.Int.Input("training_seed", default=0, min=0, max=MAXIMUM_SEED,
                             tooltip="Another seed is another run, with other noise and another order of pictures."),
                types.Optimizer.Input("optimizer", optional=True, tooltip="Default: AdamW, weight decay 0.01."),
                types.Schedule.Input("schedule", optional=True, tooltip="Default: constant, no warm-up."),
                types.Objective.Input("objective", optional=True, tooltip="Default: no loss weighting, no noise offset."),
                advanced(io.Int.Input("accumulation", default=1, min=1, max=1024, optional=True,
                                      tooltip="Batches per step: the effect of a larger batch without its memory.")),
                advanced(io.Float.Input("dropout", default=0.0, min=0.0, max=0.95, step=0.05, optional=True,
                                        tooltip="Dropout inside the LoRA; 0.1 counters overfitting on few pictures.")),
                advanced(io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                                        tooltip="Share of captions left out; 0.05 to 0.1 makes the LoRA act without "
                                                "its trigger too.")),
                advanced(io.Boolean.Input("buckets", default=True, optional=True,
                                          tooltip="Keep the pictures' shapes. Off: every picture is cropped square.")),
                advanced(io.String.Input("target_pattern", default="", optional=True,
                                         tooltip="Regular expression over layer names, for targets: pattern. Example: "
                                                 "attn2\\.to_[kv]$")),
                advanced(io.Combo.Input("file_precision", options=["fp16", "bf16", "fp32"], default="fp16",
                                        optional=True, tooltip="Precision of the saved file.")),
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA."),
                types.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                types.FileName.Output(display_name="lora_name",
                                      tooltip="The file's name: connect it to the lora_name of any LoRA loader."),
                types.LoraStack.Output(display_name="lora_stack", tooltip="For nodes that take a LoRA stack."),
                io.String.Output(display_name="summary", tooltip="What was trained, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, base, dataset, name, **widgets):
        spec = make_spec(base, dataset, name, **widgets)
        run = open_run(spec)
        progress = host.NodeProgress(cls.hidden.unique_id)
        if run.report is None:
            train(run, spec, progress)
        lora = load_file(run.artifact)
        report = with_load_check(run, spec, lora)
        lora_name = host.place_lora(run.artifact, run.name)
        summary = summarise(spec, report, lora_name)
        progress.show(summary)
        return io.NodeOutput(
            lora, {"loss": run.losses()}, lora_name, [(lora_name, 1.0, 1.0)], summary,
            ui={"text": [summary], "lora": [lora_name]},
        )


def make_spec(base, dataset, name, preset, steps, learning_rate, rank, alpha, targets, batch_size, resolution,
              text_encoder_learning_rate, precision, gradient_checkpointing, preview_prompts, preview_every,
              checkpoint_every, training_seed, optimizer=None, schedule=None, objective=None, accumulation=1,
              dropout=0.0, caption_dropout=0.0, buckets=True, target_pattern="", file_precision="fp16") -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    if preset == RECOMMENDED:
        recipe = families.get(base.family).lora_preset
        steps, learning_rate, rank, alpha = recipe.steps, recipe.learning_rate, recipe.rank, recipe.alpha
        resolution, text_encoder_learning_rate = recipe.resolution, recipe.text_encoder_learning_rate
        objective = objective or checked(ObjectiveSpec, min_snr_gamma=recipe.min_snr_gamma)
    prompts = tuple(line.strip() for line in preview_prompts.splitlines() if line.strip())
    optimizer = optimizer or OptimizerSpec()
    return checked(
        RunSpec, name=name.strip(), base=base, dataset=dataset,
        method=checked(LoraSpec, rank=rank, alpha=alpha, dropout=dropout, targets=targets, pattern=target_pattern,
                       text_encoder_learning_rate=text_encoder_learning_rate, file_precision=file_precision),
        optimizer=checked(OptimizerSpec, **{**dict(optimizer), "learning_rate": learning_rate}),
        schedule=schedule or ScheduleSpec(),
        objective=objective or ObjectiveSpec(),
        training=checked(TrainingSpec, steps=steps, batch_size=batch_size, accumulation=accumulation,
                         resolution=resolution, buckets=buckets, caption_dropout=caption_dropout, seed=training_seed,
                         precision=precision, gradient_checkpointing=gradient_checkpointing),
        previews=checked(PreviewSpec, prompts=prompts, every=preview_every if prompts else 0, seed=training_seed),
        checkpoints=checked(CheckpointSpec, every=checkpoint_every),
        folders=FolderSpec(runs=str(host.output_folder()), caches=str(host.output_folder() / ".cache")),
        device=host.training_device(),
    )


def train(run: Run, spec: RunSpec, progress: host.NodeProgress):
    """Run the worker until the file is there. Raises UserError when it fails, the host's interrupt when cancelled."""
    host.require_packages()
    host.free_memory()
    with TrainingProcess(run) as process:
        host.follow(process.events(), process.cancel, Display(run, spec, progress).show)


@dataclass
class Display:
    """Events as text, bar and picture on the node."""

    run: Run
    spec: RunSpec
    progress: host.NodeProgress
    step: int = 0
    notes: list[str] = field(default_factory=list)

    def show(self, event: dict):
        kind, total = event["event"], self.spec.training.steps
        if kind == "started":
            self.progress.show("starting the training process")
        elif kind == "phase":
            self.progress.show(event["text"])
        elif kind == "encoding":
            self.progress.show(f"encoding {event['what']}, {event['done']} of {event['total']}",
                               event["done"], event["total"])
        elif kind == "resumed":
            self.step = event["step"]
            self.progress.show(f"going on from step {self.step}", self.step, total)
        elif kind == "note":
            self.notes.append(f"Note: {event['text']}.")
        elif kind == "step":
            self.step = event["step"]
            line = f"step {self.step} of {total} · loss {event['loss']:.4f} · {clock(event['seconds_left'])} left"
            self.progress.show("\n".join([line, *self.notes]), self.step, total)
        elif kind == "preview":
            picture = Image.open(event["path"]).convert("RGB")
            self.progress.show(f"preview at step {event['step']}", event["step"], total, picture)
        elif kind == "cancelled":
            self.progress.show(self._saved(event["step"]))
        elif kind == "failed":
            raise UserError(event["message"])

    def _saved(self, step: int) -> str:
        """After a cancel: put the LoRA as it is where loaders find it."""
        files = sorted(self.run.checkpoint_folder(step).glob("*.safetensors"))
        if not files:
            return "cancelled before the first step"
        name = host.place_lora(files[0], files[0].stem)
        return f"cancelled and saved at step {step}: {name}. Queue again to go on."


def with_load_check(run: Run, spec: RunSpec, lora: dict) -> dict:
    """The run's report with the host's verdict on the file, made once and kept."""
    report = run.report
    if "unmatched_keys" not in report:
        text_config = component_config(spec.base, "text_encoder")
        unmatched = host.unmatched_keys(lora, spec.base.family, component_config(spec.base, "unet"), text_config)
        report = {**report, "unmatched_keys": unmatched}
        write_json(run.report_path, report)
    if report["unmatched_keys"]:
        raise UserError(f"The LoRA was trained, but ComfyUI would not load {len(report['unmatched_keys'])} of its "
                        f"{report['keys']} keys, for example {report['unmatched_keys'][0]!r}. The file is kept at "
                        f"{run.name}/{run.artifact.name}; please report this.")
    return report


def summarise(spec: RunSpec, report: dict, lora_name: str) -> str:
    """What people want to know, most important first: some frontends show only the first lines on a node."""
    method, training = spec.method, spec.training
    effect = ("its effect is not zero" if report["change_norm"] else
              "BUT ITS EFFECT IS ZERO: nothing was learnt; raise the learning rate or the steps")
    lines = [
        f"{lora_name}: loads in ComfyUI with all {report['keys']} keys of {report['layers']} layers; {effect}.",
        f"Loss {report['loss_first_tenth']:.4f} in the first tenth of the steps, "
        f"{report['loss_last_tenth']:.4f} in the last.",
        f"{report['steps']} steps × {training.batch_size * training.accumulation} pictures of {training.resolution} px on "
        f"{spec.base.name}, learning rate {spec.optimizer.learning_rate:g}.",
        f"Rank {method.rank}, alpha {method.alpha:g}, {method.targets}, {report['bytes'] / 1e6:.2f} MB.",
    ]
    return "\n".join([*lines, *(f"Note: {note}." for note in report["notes"])])


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
