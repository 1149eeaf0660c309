"""What all Train nodes share: widgets → run spec → worker process → progress → the file, placed and checked."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Sequence

from comfy_api.latest import io
from PIL import Image

from ...trainers.drawing.contact_sheets import sheet_on_node
from ...trainers.errors import UserError
from ...trainers.files import write_json
from ...trainers.optional_packages import require_packages
from ...trainers.process.parent import TrainingProcess
from ...trainers.run_folder import Run, open_run
from ...trainers.spec import (
    MAXIMUM_SEED,
    CheckpointSpec,
    FolderSpec,
    MemorySpec,
    ObjectiveSpec,
    OptimizerSpec,
    PreviewSpec,
    PriorSpec,
    RunSpec,
    ScheduleSpec,
    TrainingSpec,
    ValidationSpec,
    checked,
)
from ...trainers.words import counted
from .. import host, sockets


def advanced(widget):
    """Mark a widget as advanced. The keyword for it is newer than the oldest host; this entry is read by all."""
    widget.extra_dict["advanced"] = True
    return widget


# ---- widgets -------------------------------------------------------------------------------------------------------

def data_inputs(file: str, name: str) -> list:
    """Base, dataset and name. `file` says in words where the result goes."""
    return [
        sockets.Base.Input("base", tooltip="The model to train on: Base Model or Load Demo Base."),
        sockets.Dataset.Input("dataset", tooltip="Images with captions: Load Image Dataset."),
        io.String.Input("name", default=name,
                        tooltip=f"Names the run and the {file}. A name that is taken by another run gets -2, -3, …"),
    ]


def run_inputs(batch_size: int = 1) -> list:
    """Images, previews, checkpoints and seed: the same widgets on every Train node."""
    return [
        io.Int.Input("batch_size", default=batch_size, min=1, max=1024,
                     tooltip="Images at once. Larger is steadier and needs more memory."),
        io.Int.Input("resolution", default=512, min=64, max=4096, step=8,
                     tooltip="Pixels of a square image's side; other shapes get about the same area. SD 1.x 512, SD 2.x "
                             "768, SDXL 1024, demo base 64."),
        io.String.Input("preview_prompts", default="", multiline=True,
                        tooltip="One prompt a line. An image of each is drawn during training and shown here."),
        io.Int.Input("preview_every", default=100, min=0, max=1_000_000, tooltip="Steps between previews; 0 for none."),
        io.Int.Input("checkpoint_every", default=250, min=0, max=1_000_000,
                     tooltip="Steps between checkpoints, from which a killed run goes on. 0: only on cancel."),
        # Not "seed": frontends put a randomize control beside that, and every queue would be a new run.
        io.Int.Input("training_seed", default=0, min=0, max=MAXIMUM_SEED,
                     tooltip="Another seed is another run, with other noise and another order of images."),
    ]


def setting_inputs() -> list:
    """Inputs for the settings nodes. A Train node works with none connected."""
    return [
        sockets.Optimizer.Input("optimizer", optional=True, tooltip="Default: AdamW, weight decay 0.01."),
        sockets.Schedule.Input("schedule", optional=True, tooltip="Default: constant, no warm-up."),
        sockets.Objective.Input("objective", optional=True, tooltip="Default: no loss weighting, no noise offset."),
        *watching_inputs(),
    ]


def watching_inputs() -> list:
    return [
        sockets.Watching.Input("watching", optional=True,
                             tooltip="Previews & Checkpoints: negative prompt, validation loss, early stop, … Its numbers "
                                     "replace preview_every and checkpoint_every."),
        sockets.Memory.Input("memory", optional=True,
                           tooltip="Memory: precision, gradient checkpointing, … Default: automatic precision."),
    ]


def batch_inputs() -> list:
    return [
        advanced(io.Int.Input("accumulation", default=1, min=1, max=1024, optional=True,
                              tooltip="Batches per step: the effect of a larger batch without its memory.")),
        advanced(io.Float.Input("caption_dropout", default=0.0, min=0.0, max=1.0, step=0.05, optional=True,
                                tooltip="Share of captions left out; 0.05 to 0.1 lets what is learned act without its "
                                        "trigger too.")),
        advanced(io.Boolean.Input("buckets", default=True, optional=True,
                                  tooltip="Keep the images' shapes. Off: every image is cropped square.")),
        *late_batch_inputs(),
    ]


def late_batch_inputs() -> list:
    return [
        advanced(io.Int.Input("clip_skip", default=0, min=0, max=12, optional=True,
                              tooltip="Which layer of the text encoder is read, counted from the end; 0 is the model's own. "
                                      "Draw with CLIP Set Last Layer at the same number, negative.")),
        advanced(io.Float.Input("ema_decay", default=0.0, min=0.0, max=0.99999, step=0.0001, optional=True,
                                tooltip="Above 0 the running mean of the weights is saved, which is steadier: 0.99 for "
                                        "hundreds of steps, 0.999 for thousands. Needs memory for another copy.")),
    ]


def prior_inputs() -> list:
    """Class images turn fine-tuning into DreamBooth, with prior preservation."""
    return [
        sockets.Dataset.Input("class_images", optional=True,
                            tooltip="Images of the subject's class (dogs, for one dog), trained along so that the class "
                                    "is not forgotten: Load Image Dataset, or Class Images, which lets the base draw them."),
        advanced(io.Float.Input("prior_weight", default=1.0, min=0.0, max=100.0, step=0.05, optional=True,
                                tooltip="How much the class images count, compared with the subject's. 1 is usual.")),
        advanced(io.Float.Input("prior_ratio", default=1.0, min=0.05, max=16.0, step=0.05, optional=True,
                                tooltip="Class images trained for every image of the subject. 1 is usual; less is "
                                        "faster.")),
    ]


# ---- the spec ------------------------------------------------------------------------------------------------------

def make_spec(base, dataset, name: str, method, *, steps, learning_rate, batch_size, resolution, preview_prompts,
              preview_every, checkpoint_every, training_seed, optimizer=None, schedule=None, objective=None, watching=None,
              memory=None, accumulation=1, caption_dropout=0.0, buckets=True, clip_skip=0, ema_decay=0.0,
              class_images=None, prior_weight=1.0, prior_ratio=1.0) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    prompts = tuple(line.strip() for line in preview_prompts.splitlines() if line.strip())
    watching = watching or sockets.WatchingSettings(
        checked(PreviewSpec, every=preview_every, seed=training_seed), checked(CheckpointSpec, every=checkpoint_every),
        ValidationSpec())
    every = watching.previews.every if prompts else 0
    prior = class_images and checked(PriorSpec, dataset=class_images, weight=prior_weight, ratio=prior_ratio)
    return checked(
        RunSpec, name=name.strip(), base=base, dataset=dataset, method=method, prior=prior or None,
        optimizer=checked(OptimizerSpec, **{**dict(optimizer or OptimizerSpec()), "learning_rate": learning_rate}),
        schedule=schedule or ScheduleSpec(),
        objective=objective or ObjectiveSpec(),
        training=checked(TrainingSpec, steps=steps, batch_size=batch_size, accumulation=accumulation,
                         resolution=resolution, buckets=buckets, caption_dropout=caption_dropout, clip_skip=clip_skip,
                         ema_decay=ema_decay, seed=training_seed),
        memory=memory or MemorySpec(),
        previews=checked(PreviewSpec, **{**dict(watching.previews), "prompts": prompts, "every": every}),
        checkpoints=watching.checkpoints,
        validation=watching.validation,
        folders=FolderSpec(runs=str(host.output_folder()), caches=str(host.output_folder() / ".cache")),
        device=host.training_device(),
    )


# ---- the run -------------------------------------------------------------------------------------------------------

@dataclass
class Finished:
    """A finished run: its files under the names that loaders list, by kind, and how it went."""

    run: Run
    spec: RunSpec
    report: dict
    names: dict[str, str]
    progress: host.NodeProgress

    def path(self, kind: str):
        return self.run.folder / next(file["name"] for file in self.report["files"] if file["kind"] == kind)

    def summarize(self, first: str, *lines: str) -> str:
        """What people want to know, most important first: some frontends show only the first lines on a node."""
        report, training = self.report, self.spec.training
        effect = ("its effect is not zero" if report["change_norm"] else
                  "BUT ITS EFFECT IS ZERO: nothing was learned; raise the learning rate or the steps")
        lines = [
            f"{first}; {effect}.",
            f"Loss {report['loss_first_tenth']:.4f} in the first tenth of the steps, "
            f"{report['loss_last_tenth']:.4f} in the last.",
            f"{counted(report['steps'], 'step')} × {counted(training.batch_size * training.accumulation, 'image')} of "
            f"{training.resolution} px on {self.spec.base.name}, learning rate {self.spec.optimizer.learning_rate:g}.",
            *validation_lines(report),
            *lines,
        ]
        return "\n".join([*lines, *(f"Note: {note}." for note in report["notes"])])

    def images(self) -> list[dict]:
        """The strip of previews and the chart of the losses, for the node's own display."""
        return [host.saved_image(path) for path in (self.run.strip_path, self.run.chart_path) if path.exists()]

    def show(self, summary: str):
        self.progress.show(summary, 1, 1)


def validation_lines(report: dict) -> list[str]:
    if "validation" not in report:
        return []
    first, best, step, last = (report["validation"][name] for name in ("first", "best", "best_step", "last"))
    lines = [f"Validation loss {first:.4f} before the training, best {best:.4f} at step {step}, last {last:.4f}."]
    if best >= first:
        lines.append("It never fell below that of the base: nothing was learned that holds for other images. Use more "
                     "images, a lower learning rate or a lower rank.")
    return lines


def run_training(spec: RunSpec, node_id: str, load_check: Callable[[Run, dict], list[str]],
                 lines: Sequence[str] = ()) -> Finished:
    """Train, or take what is there; place the files and check once that the host loads them.

    `load_check(run, report)` returns what the host would not load; `lines` stand on the node while it trains. Raises
    UserError, or the host's interrupt.
    """
    kinds = KINDS[spec.method.kind]
    run = open_run(spec, lambda name: host.is_taken(kinds, name))
    progress = host.NodeProgress(node_id)
    if run.report is None:
        train(run, spec, progress, lines)
    report = with_load_check(run, load_check)
    names = place_files(run, spec.name, report)
    return Finished(run, spec, report, names, progress)


KINDS = {"lora": ("lora",), "full": ("checkpoint",), "textual_inversion": ("embedding",), "hypernetwork": ("hypernetwork",),
         "pivotal": ("lora", "embedding")}
"""The files that a method makes."""


def place_files(run: Run, name: str, report: dict) -> dict[str, str]:
    """Put the files of a finished run where loaders find them; their names there, by kind. `name` is what the node calls the
    run; see `host.watch`."""
    placed = {file["kind"]: host.place(file["kind"], run.folder / file["name"], run.name)
              for file in placeable(report["files"])}
    host.remove_meanwhile(run.folder)
    host.watch(name, [*placed.values(), run.report_path])
    return {kind: path.name for kind, path in placed.items()}


def placeable(files: list[dict]) -> list[dict]:
    """Files that loaders of the host take. Shards and ONNX files stay in the folder of the run."""
    return [file for file in files if file["kind"] not in ("shard", "onnx")]


def train(run: Run, spec: RunSpec, progress: host.NodeProgress, lines: Sequence[str] = ()):
    """Run the worker until the file is there. Raises UserError when it fails, the host's interrupt when cancelled."""
    host.require_packages()
    require_packages(spec)
    host.free_memory()
    with TrainingProcess(run) as process:
        host.follow(process.events(), process.cancel, Display(run, spec, progress, notes=list(lines)).show)
    progress.take_image_away()


@dataclass
class Display:
    """Events as text, bar and image on the node."""

    run: Run
    spec: RunSpec
    progress: host.NodeProgress
    notes: list[str] = field(default_factory=list)
    validation: str = ""

    def show(self, event: dict):
        kind, total, reached = event["event"], self.spec.training.steps, event.get("progress", 0)
        if kind == "started":
            self.progress.show("\n".join(["starting the training process", *self.notes]), reached=reached)
        elif kind == "phase":
            self.progress.show(event["text"], reached=reached)
        elif kind == "encoding":
            self.progress.show(f"encoding {event['what']}, {event['done']} of {event['total']}",
                               event["done"], event["total"], reached=reached)
        elif kind == "resumed":
            self.progress.show(f"going on from step {event['step']}", reached=reached)
        elif kind == "note":
            self.notes.append(f"Note: {event['text']}.")
        elif kind == "validation":
            self.validation = f" · validation {event['loss']:.4f}"
        elif kind == "step":
            line = (f"step {event['step']} of {total} · loss {event['loss']:.4f}{self.validation} · "
                    f"{clock(event['seconds_left'])} left")
            rates = event["learning_rates"]
            if len(set(rates.values())) > 1:
                line += "\nlearning rate " + ", ".join(f"{name}: {rate:.3g}" for name, rate in rates.items())
            self.progress.show("\n".join([line, *self.notes]), event["step"], total, reached=reached)
        elif kind == "preview":
            image = preview_at(event["path"], self.spec.previews)
            self.progress.show(f"preview at step {event['step']}", image=image, reached=reached)
        elif kind == "overview":
            self.progress.show("the whole run at a glance", image=image_at(event["path"]), reached=reached)
        elif kind == "finished":
            self.progress.show("finished", reached=reached)
        elif kind == "cancelling":
            self.progress.show("cancelling, saving what is learned")
        elif kind == "cancelled":
            self.progress.show(event.get("message") or self._cancelled(event["step"]))
        elif kind == "failed":
            raise UserError(event["message"])

    def _cancelled(self, step: int) -> str:
        """After a cancel: put the files as they are where loaders find them."""
        folder = self.run.checkpoint_folder(step)
        files = [file for file in self.run.checkpoint_files(step) if (folder / file["name"]).exists()]
        if not files:
            return "cancelled before the first step"
        if not placeable(files):
            return f"cancelled and saved at step {step} in {self.run.name}/checkpoints. Queue again to go on."
        placed = host.place_meanwhile(self.run.folder, [(file["kind"], folder / file["name"]) for file in placeable(files)])
        names = ", ".join(path.name for path in placed)
        return (f"cancelled and saved at step {step}: {names}, which can be tried until the run is finished. Queue again to "
                "go on.")


def image_at(path: str | Path) -> Image.Image | None:
    """None where it was removed: it is for looking at only."""
    try:
        return Image.open(path).convert("RGB")
    except OSError:
        return None


def preview_at(path: str, previews: PreviewSpec) -> Image.Image | None:
    """The images of a step, arranged for the node; None where they were removed."""
    try:
        return sheet_on_node(Path(path), previews.prompts, previews.images)
    except OSError:
        return None


def with_load_check(run: Run, load_check: Callable[[Run, dict], list[str]]) -> dict:
    """The run's report with the host's verdict on the files, made once and kept."""
    report = run.report
    if report is None:
        raise UserError(run.deleted)
    if "unmatched_keys" not in report:
        report = {**report, "unmatched_keys": load_check(run, report)}
        write_json(run.report_path, report)
    if report["unmatched_keys"]:
        raise UserError(f"The training is finished, but ComfyUI would not load {len(report['unmatched_keys'])} weights of "
                        f"its file, for example {report['unmatched_keys'][0]!r}. The file is kept at "
                        f"{run.name}/{run.artifact.name}; please report this.")
    return report


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
