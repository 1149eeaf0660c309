"""What all Train nodes share: run spec → worker process → progress → the file, placed and checked."""
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Sequence

from PIL import Image

from ...trainers.drawing.contact_sheets import first_image, sheet_on_node
from ...trainers.errors import UserError
from ...trainers.files import write_json
from ...trainers.optional_packages import require_packages
from ...trainers.process.parent import TrainingProcess
from ...trainers.run_folder import Run, open_run
from ...trainers.spec import PreviewSpec, RunSpec
from ...trainers.words import counted
from .. import host

# ---- the run -------------------------------------------------------------------------------------------------------

@dataclass
class Finished:
    """A finished run: its files under the names that loaders list, by kind, and how it went."""

    run: Run
    spec: RunSpec
    report: dict
    names: dict[str, str]
    progress: host.NodeProgress
    notes: Sequence[str] = ()
    """What was said before it began."""

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
            *lines, *self.notes,
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
    names = place_files(run, spec.name, report, spec.previews)
    return Finished(run, spec, report, names, progress, lines)


KINDS = {"lora": ("lora",), "full": ("checkpoint",), "textual_inversion": ("embedding",), "hypernetwork": ("hypernetwork",),
         "pivotal": ("lora", "embedding")}
"""The files that a method makes."""


def place_files(run: Run, name: str, report: dict, previews: PreviewSpec = PreviewSpec()) -> dict[str, str]:
    """Put the files of a finished run where loaders find them; their names there, by kind. `name` is what the node calls the
    run; see `host.watch`. A LoRA gets the first of the run's last `previews` beside it."""
    placed = {file["kind"]: host.place(file["kind"], run.folder / file["name"], run.name)
              for file in placeable(report["files"])}
    if "lora" in placed and previews.prompts and run.sheets():
        with suppress(OSError):  # a preview that was removed
            host.place_preview(placed["lora"], first_image(run.sheets()[-1][1], previews.prompts, previews.images))
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
