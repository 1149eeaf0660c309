"""What all Train nodes share: run spec → worker process → progress → the file, placed and checked."""
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...trainers.drawing.contact_sheets import first_image, sheet_on_node
from ...trainers.events import (
    CancelledEvent,
    EncodingEvent,
    FinishedEvent,
    NoteEvent,
    OverviewEvent,
    PreviewEvent,
    ResumedEvent,
    StepEvent,
    ValidationEvent,
)
from ...trainers.optional_packages import require_packages
from ...trainers.reports import RunReport, ValidationSummary
from ...trainers.run_folder import Run
from ...trainers.spec import PreviewSpec, RunSpec
from ...trainers.words import counted
from .. import host

# ---- the run -------------------------------------------------------------------------------------------------------

@dataclass
class Finished(host.Made[RunReport]):
    """A finished run, and what was asked for."""

    spec: RunSpec
    said: Sequence[str] = ()
    """What was said before it began."""

    def summarize(self, first: str, *lines: str) -> str:
        """What people want to know, most important first: some frontends show only the first lines on a node."""
        report, training = self.report, self.spec.training
        effect = ("its effect is not zero" if report.change_norm else
                  "BUT ITS EFFECT IS ZERO: nothing was learned; raise the learning rate or the steps")
        lines = (
            f"{first}; {effect}.",
            f"Loss {report.loss_first_tenth:.4f} in the first tenth of the steps, {report.loss_last_tenth:.4f} in the last.",
            f"{counted(report.steps, 'step')} × {counted(training.batch_size * training.accumulation, 'image')} of "
            f"{training.resolution} px on {self.spec.base.name}, learning rate {self.spec.optimizer.learning_rate:g}.",
            *validation_lines(report.validation),
            *lines, *self.said,
        )
        return "\n".join([*lines, *self.notes()])

    def images(self) -> list[dict[str, str]]:
        """The strip of previews and the chart of the losses, for the node's own display."""
        return [host.saved_image(path) for path in (self.run.strip_path, self.run.chart_path) if path.exists()]

    def show(self, summary: str):
        self.progress.show(summary, 1, 1)


def validation_lines(losses: ValidationSummary | None) -> list[str]:
    if losses is None or losses.first is None or losses.best is None:
        return []
    lines = [f"Validation loss {losses.first:.4f} before the training, best {losses.best:.4f} at step {losses.best_step}, "
             f"last {losses.last:.4f}."]
    if losses.best >= losses.first:
        lines.append("It never fell below that of the base: nothing was learned that holds for other images. Use more "
                     "images, a lower learning rate or a lower rank.")
    return lines


def run_training(spec: RunSpec, node_id: str, load_check: host.LoadCheck[RunReport], lines: Sequence[str] = ()) -> Finished:
    """Train, or take what is there; place the files and check once that the host loads them.

    `load_check(run, report)` returns what the host would not load; `lines` stand on the node while it trains. Raises
    UserError, or the host's interrupt.
    """
    progress = host.NodeProgress(node_id)
    made = host.make_files(spec, RunReport, KINDS[spec.method.kind], progress,
                           lambda run: train(run, spec, progress, lines), load_check, "The training is finished",
                           lambda run: last_preview(run, spec.previews))
    return Finished(made.run, made.report, made.names, progress, spec, lines)


KINDS = {"lora": ("lora",), "full": ("checkpoint", "diffusion_model"), "textual_inversion": ("embedding",),
         "hypernetwork": ("hypernetwork",), "pivotal": ("lora", "embedding")}
"""The files that a method makes."""


def last_preview(run: Run, previews: PreviewSpec) -> Image.Image | None:
    """The first of the run's last previews, which a LoRA gets beside it."""
    with suppress(OSError):  # a preview that was removed
        if previews.prompts and run.sheets():
            return first_image(run.sheets()[-1][1], previews.prompts, previews.images)
    return None


def train(run: Run, spec: RunSpec, progress: host.NodeProgress, lines: Sequence[str] = ()):
    """Run the worker until the file is there. Raises UserError when it fails, the host's interrupt when cancelled."""
    require_packages(spec)
    host.work(run, Display(run, spec, progress, lines))
    progress.take_image_away()


class Display(host.Display):
    """A training on its node: the losses, the previews, and what is kept after a cancel."""

    def __init__(self, run: Run, spec: RunSpec, progress: host.NodeProgress, lines: Sequence[str]):
        super().__init__(progress, "\n".join(["starting the training process", *lines]),
                         "cancelling, saving what is learned")
        self.run, self.spec, self.lines, self.validation = run, spec, list(lines), ""

    def on_encoding(self, event: EncodingEvent):
        self.progress.show(f"encoding {event.what}, {event.done} of {event.total}", event.done, event.total,
                           reached=event.progress)

    def on_resumed(self, event: ResumedEvent):
        self.progress.show(f"going on from step {event.step}", reached=event.progress)

    def on_note(self, event: NoteEvent):
        self.lines.append(f"Note: {event.text}.")

    def on_validation(self, event: ValidationEvent):
        self.validation = f" · validation {shown(event.loss)}"

    def on_step(self, event: StepEvent):
        total = self.spec.training.steps
        line = (f"step {event.step} of {total} · loss {shown(event.loss)}{self.validation} · "
                f"{clock(event.seconds_left)} left")
        if len(set(event.learning_rates.values())) > 1:
            line += "\nlearning rate " + ", ".join(f"{name}: {rate:.3g}" for name, rate in event.learning_rates.items())
        self.progress.show("\n".join([line, *self.lines]), event.step, total, reached=event.progress)

    def on_preview(self, event: PreviewEvent):
        image = preview_at(event.path, self.spec.previews)
        self.progress.show(f"preview at step {event.step}", image=image, reached=event.progress)

    def on_overview(self, event: OverviewEvent):
        self.progress.show("the whole run at a glance", image=image_at(event.path), reached=event.progress)

    def on_finished(self, event: FinishedEvent):
        self.progress.show("finished", reached=event.progress)

    def on_cancelled(self, event: CancelledEvent):
        self.progress.show(event.message or self._kept(event.step))

    def _kept(self, step: int) -> str:
        """After a cancel: put the files as they are where loaders find them."""
        folder = self.run.checkpoint_folder(step)
        files = [file for file in self.run.checkpoint_files(step) if (folder / file.name).exists()]
        loadable = [(file.kind, folder / file.name) for file in files if file.is_loadable]
        if not files:
            return "cancelled before the first step"
        if not loadable:
            return f"cancelled and saved at step {step} in {self.run.name}/checkpoints. Queue again to go on."
        names = ", ".join(path.name for path in host.place_meanwhile(self.run.folder, loadable))
        return (f"cancelled and saved at step {step}: {names}, which can be tried until the run is finished. Queue again to "
                "go on.")


def shown(loss: float | None) -> str:
    return "not a number" if loss is None else f"{loss:.4f}"


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


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
