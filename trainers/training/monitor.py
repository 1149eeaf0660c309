"""What is seen and kept of a run beside its training: previews, validation, the best file, strip and chart.

Nothing here changes the numbers of the training, except that it may end it early. A stop breaks previews and validations
off; they are made good when the run goes on.
"""
import shutil
import time

import torch

from ..drawing import contact_sheets
from ..drawing.loss_chart import loss_chart
from ..errors import Cancelled, UserError
from ..events import OverviewEvent, PhaseEvent, PreviewEvent, StepEvent, ValidationEvent
from ..families.conditioning import Conditioning
from ..files import place_copy, read_json, write_json
from ..reports import Record, Saved, ValidationSummary
from ..sampling import previews
from ..stopping import breakable
from .validation import ValidationRecord, validation_loss


class BestFile(Record):
    """What is kept of the best validation so far, beside its files."""

    step: int
    saved: Saved


class Watching:
    """Looks at a `Training` between its steps. All processes call everything; the main one makes and writes."""

    def __init__(self, training):
        self.training, self.spec, self.run, self.data = training, training.spec, training.run, training.data
        self.accelerator, self.emit = training.accelerator, training.emit
        self.record = ValidationRecord(self.spec.validation.patience)
        self.previewed = self.validated = -1
        """Steps after which that was done last."""
        self.broken_off = False
        """Whether a stop has left something undone."""

    def begin(self):
        """Before the first step: how the base does."""
        self._preview(0)
        self._validate(0)

    def after_step(self, step: int):
        if self._is_due(step, self.spec.previews.every) and self.previewed != step:
            self._preview(step)
        if self._is_due(step, self.spec.validation.every) and self.validated != step:
            self._validate(step)

    def _is_due(self, step: int, every: int) -> bool:
        return bool(every) and (step % every == 0 or step == self.spec.training.steps)

    def state_dict(self) -> dict:
        return {**self.record.state(), "previewed": self.previewed, "validated": self.validated}

    def load_state_dict(self, state: dict):
        record = {**state, "patience": self.spec.validation.patience}
        self.previewed, self.validated = record.pop("previewed"), record.pop("validated")
        self.record = ValidationRecord(**record)

    # ---- previews --------------------------------------------------------------------------------------------------

    def _preview(self, step: int):
        spec, training = self.spec.previews, self.training
        if not (spec.every and spec.prompts and self.accelerator.is_main_process):
            return
        model, rows = self.accelerator.unwrap_model(training.model).eval(), []

        def conditioning(prompt: str) -> Conditioning:
            return model.condition([prompt], self.data.captions.batch([prompt]).to(training.device))

        try:
            with (training.mean_weights(spec.from_ema), training.without_assistant(), self.accelerator.autocast(),
                  breakable(), training.placement.lent(self.data.vae) as vae):
                for row in previews.make_previews(
                        training.family, self.spec.base, model.denoiser, vae, self.data.latent_format,
                        spec, conditioning, self.data.preview_resolution, training.device,
                        self.spec.objective.zero_terminal_snr):
                    rows.append(row)
                    self.emit(PhaseEvent(text=f"preview at step {step}, {len(rows)} of {len(spec.prompts)} prompts done"))
        except torch.OutOfMemoryError:
            training.note(f"the preview at step {step} was left out, because it needs more memory than is free")
            self.previewed = step
            return
        except Cancelled:
            self.broken_off = True
            return
        path = self.run.sheet_path(step)
        path.parent.mkdir(exist_ok=True)
        title = f"step {step} of {self.spec.training.steps}" if step else "before the training"
        contact_sheets.contact_sheet(rows, spec.prompts, title).save(path)
        self.previewed = step
        self.emit(PreviewEvent(step=step, path=str(path)))

    # ---- validation ------------------------------------------------------------------------------------------------

    def _validate(self, step: int):
        """Every process gets the same number, so they agree about the best and about the end."""
        if not self.data.held_out:
            return
        training, told = self.training, time.monotonic()

        def tell(done: int, total: int):
            nonlocal told
            if time.monotonic() - told > 1:
                told = time.monotonic()
                self.emit(PhaseEvent(text=f"validation at step {step}, image {done} of {total}"))

        with training.mean_weights():
            loss = validation_loss(
                self.accelerator, training.model, training.objective, self.data.held_out,
                self.data.conditioning, self.spec.training.seed, tell)
        if loss is None:
            self.broken_off = True
            return
        self.validated = step
        self.emit(ValidationEvent(step=step, loss=loss))
        if self.record.add(step, loss):
            self._keep_best(step)

    def _keep_best(self, step: int):
        """The file of the best validation takes the place of the one before."""
        if self.accelerator.is_main_process:
            shutil.rmtree(self.run.best_folder, ignore_errors=True)
            best = BestFile(step=step, saved=self.training.save_files(self.run.best_folder, self.run.name, step))
            write_json(self.run.best_folder / "best.json", best.model_dump(mode="json"))
        self.accelerator.wait_for_everyone()

    @property
    def ended(self) -> bool:
        """Whether the run shall end early."""
        return self.record.exhausted

    def take_best(self) -> Saved:
        """Put the files of the best validation into the run's folder; what `Method.save` said of them."""
        content = read_json(self.run.best_folder / "best.json")
        if content is None:
            raise UserError(f"The file of the best validation, that of step {self.record.best_step}, has disappeared from "
                            f"{self.run.name}/checkpoints/best. Delete the folder of the run and queue again, or use the "
                            "file of the newest checkpoint.")
        best, files = BestFile.model_validate(content), []
        for file in best.saved.files:
            source = self.run.best_folder / file.name
            placed = place_copy(source, self.run.folder, source.stem, link=True)
            files.append(file.model_copy(update={"name": placed.name}))
        waited = self.record.waited
        self.training.note(f"stopped early, because {waited} validation{'s' * (waited > 1)} in a row brought no lower loss "
                           f"than that of step {best.step}; the file is that of step {best.step}")
        return best.saved.model_copy(update={"files": tuple(files)})

    # ---- the whole run ---------------------------------------------------------------------------------------------

    def summary(self) -> ValidationSummary | None:
        return self.record.summary() if self.data.held_out else None

    def draw_overviews(self):
        """A strip of the previews and a chart of the losses, from what lies in the run's folder."""
        if not self.accelerator.is_main_process:
            return
        sheets, losses = self.run.sheets(), self.run.curve(StepEvent)
        if losses:
            chart = loss_chart(losses, self.run.curve(ValidationEvent), self.run.curve(StepEvent, "gradient_norm"))
            chart.save(self.run.chart_path)
            self.emit(OverviewEvent(path=str(self.run.chart_path)))
        if sheets:
            strip = contact_sheets.progress_strip(sheets, self.spec.previews.prompts, self.spec.previews.images)
            strip.save(self.run.strip_path)
            self.emit(OverviewEvent(path=str(self.run.strip_path)))
