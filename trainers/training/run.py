"""The story of a run: load, cache, attach, loop, save.

Runs in the worker process. Everything it has to tell goes through `emit`; `stop_requested` is asked after every step.
"""
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from .. import families, methods
from ..accelerator import accelerated, dtype_of
from ..artifacts.metadata import training_metadata
from ..caches.freed_memory import give_back_freed_memory
from ..errors import Cancelled, UserError
from ..events import (
    CheckpointEvent,
    Emit,
    EncodingEvent,
    Event,
    ModelEvent,
    NoteEvent,
    PhaseEvent,
    ResumedEvent,
    StepEvent,
)
from ..families.protocol import TextEncoders
from ..files import ensure_space
from ..memory import quantization
from ..memory.placement import Placement
from ..methods.protocol import Parts
from ..objectives.objective import make_objective, objective_notes
from ..optimization import optimizers
from ..optimization.ema import ParameterMean
from ..optimization.optimizers import make_optimizer
from ..optimization.schedules import make_schedule
from ..optional_packages import require_packages
from ..reports import RunReport, Saved
from ..run_folder import Run
from ..spec import RunSpec
from ..stopping import breakable
from . import compilation, loop, memory_advice
from .assistant import Assistant
from .batches import Batches
from .conditioned_model import ConditionedModel
from .monitor import Watching
from .preparation import prepare_data
from .run_state import Parameters, RunState
from .tensorboard import Board


def train_run(spec: RunSpec, run: Run, emit: Emit, stop_requested: Callable[[], bool] = lambda: False) -> RunReport | None:
    """Train, or go on training, until the file of the run is there. Returns the report, in the main process.

    Raises UserError with a sentence, or Cancelled once a requested stop has been saved.
    """
    with accelerated(spec) as accelerator:
        wanted = spec.validation.tensorboard and accelerator.is_main_process
        board = Board(emit, run.folder / "tensorboard") if wanted else None
        try:
            return Training(spec, run, board or emit, stop_requested, accelerator).execute()
        finally:
            if board:
                board.close()


class Training:
    """One run in memory: what the steps of the story share."""

    def __init__(self, spec: RunSpec, run: Run, emit: Emit, stop_requested: Callable[[], bool],
                 accelerator: Accelerator):
        self.switched = spec.base.zero_terminal_snr and not spec.objective.zero_terminal_snr
        if self.switched:
            spec = spec.model_copy(update={"objective": spec.objective.model_copy(update={"zero_terminal_snr": True})})
        self.spec, self.run, self.emit, self.stop_requested = spec, run, emit, stop_requested
        self.accelerator, self.device = accelerator, accelerator.device
        self.family = families.get(spec.base.family)
        self.method = methods.make(spec.method, spec.optimizer.learning_rate, self.family)
        self.placement = Placement.of(spec.memory, self.device, dtype_of(accelerator), self.method.trains_base(),
                                      Path(spec.folders.caches))
        if spec.training.batch_size % accelerator.num_processes:
            raise UserError(f"batch_size is {spec.training.batch_size}, which {accelerator.num_processes} processes "
                            "cannot share evenly. Choose a multiple.")
        require_packages(spec)
        optimizers.require_support(spec.optimizer, self.device)
        for storage in (self.placement.storage, self.placement.text_storage):
            if storage != "same":
                quantization.require_support(storage, self.device)
        if spec.memory.compile:
            compilation.require_compiler(self.device)
        self.assistant = Assistant(spec.base, self.family) if spec.base.assistant else None
        self.trained_text = self.method.trained_encoders(self.family, spec.base)
        if spec.memory.caption_cache == "always" and self.trained_text:
            raise UserError("caption_cache is always, but the text encoder is trained too, and captions encoded beforehand "
                            "would freeze it. Set caption_cache to auto, or train the denoiser alone.")

    def execute(self) -> RunReport | None:
        notes = [f"{self.spec.base.name} was trained on a noise schedule that ends in pure noise, so zero_terminal_snr is "
                 "switched on"] if self.switched else []
        notes += [*self.family.base_notes(self.spec.base), *self.method.check(self.family, self.spec),
                 *objective_notes(self.spec.base.prediction_type, self.spec.objective),
                 *filter(None, [self.family.precision_note(self.placement.frozen)])]
        if self.assistant:
            self.assistant.require_fit()
            notes += self.assistant.notes
        with breakable():
            self.data = prepare_data(self.spec, self.family, self.placement, self.accelerator, self.trained_text,
                                     self.method.hidden_words(), notes, self._emit_encoding)
            self._advise()
            self._attach()
            self.watching = Watching(self)
            start = self._resume()
        self._loop(start)
        complete = loop.agreed(self.accelerator, not self.watching.broken_off)
        if complete and self.finished_steps == self.spec.training.steps:
            return self._finish()
        if self.finished_steps > self.saved_step:
            self.emit(PhaseEvent(text="saving what is learned"))
            self._checkpoint(self.finished_steps)
        if self.watching.ended:
            return self._finish()
        self.watching.draw_overviews()
        raise Cancelled

    def _emit_encoding(self, event: Event):
        """Encoding a large dataset takes minutes; a cancel is heard between images."""
        self.emit(event)
        if isinstance(event, EncodingEvent) and self.stop_requested():
            raise Cancelled

    def _advise(self):
        """Say so before minutes of loading when a GPU has too little memory for a step."""
        if self.device.type == "cuda":
            text = memory_advice.advice(self.spec, self.family, self.method, self.placement, self.data,
                                        torch.cuda.mem_get_info(self.device)[0])
            if text:
                self.note(text)

    def _attach(self):
        spec = self.spec
        self.emit(PhaseEvent(text="loading the denoiser", stage="denoiser"))
        denoiser = self.family.load_denoiser(spec.base, self.placement.base, self.placement.keeper)
        give_back_freed_memory()  # layers of other types and sizes, one after the other, leave holes
        if self.assistant:
            self.assistant.attach(denoiser, self.placement.frozen)
        self.parts = Parts(self.family, denoiser, self.data.text or TextEncoders({}, {}), spec.base)
        groups = self.method.attach(self.parts, spec.training.seed)
        give_back_freed_memory()
        self.parameters = {f"{group.name}.{name}": each for group in groups for name, each in group.parameters.items()}
        if spec.memory.compile:
            denoiser.compile()  # in place: names of weights stay as they are
        optimizer = make_optimizer(spec.optimizer, groups, spec.training.steps)
        self.schedule = make_schedule(spec.schedule, optimizer, spec.training.steps)
        model = ConditionedModel(self.family, denoiser, self.data.text, self.family.encoder_names(spec.base),
                                 self.placement.around_forward)
        if spec.memory.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.model, self.optimizer = self.accelerator.prepare(model.to(self.device), optimizer)
        count = sum(each.numel() for each in self.parameters.values())
        decay = spec.training.ema_decay
        self.mean = ParameterMean(self.parameters, decay) if decay else None
        # Weights in float32, their mean and the optimizer's state; one checkpoint more than kept while saving.
        # Where the base itself is trained, each has a file of the whole model: half as much again as the denoiser at most.
        size = 4 + optimizers.STATE_BYTES[spec.optimizer.name] + (4 if self.mean else 0)
        whole = 1.5 * sum(each.numel() for each in denoiser.parameters()) if self.method.trains_base() else 0
        per_file = int(whole * (4 if getattr(spec.method, "file_precision", "fp32") == "fp32" else 2))
        best = per_file if spec.validation.fraction else 0
        ensure_space(self.run.folder, (size * count + per_file) * (spec.checkpoints.keep + 1) + best)
        self.emit(ModelEvent(
            family=self.family.title, prediction_type=spec.base.prediction_type, device=str(self.device),
            precision=str(self.placement.frozen).removeprefix("torch."), trainable=count,
            processes=self.accelerator.num_processes))

    def _resume(self) -> int:
        self.state = RunState({
            "parameters": Parameters(self.parameters), "mean": self.mean, "optimizer": self.optimizer,
            "schedule": self.schedule, "scaler": self.accelerator.scaler, "validation": self.watching})
        step = self.state.load(self.run)
        if step:
            self.emit(ResumedEvent(step=step, total=self.spec.training.steps))
        return step

    def _loop(self, start: int):
        spec = self.spec
        self.objective = make_objective(spec.base.prediction_type, self.family.alphas_cumprod(spec.base), spec.objective,
                                        self.family.noise_shift(spec.base))
        batches = Batches(
            self.data.subject, spec.training.accumulation, spec.training.seed, spec.training.caption_dropout,
            self.data.conditioning, self.accelerator.process_index, self.accelerator.num_processes, self.data.prior,
            spec.prior.weight if spec.prior else 0.0, self.data.prior_rate,
        )
        self.began = self.saved_at = time.monotonic()
        self.saved_step = start
        # What was broken off by a cancel is made good first.
        self.watching.after_step(start) if start else self.watching.begin()
        self.step_seconds, self.first_step, self.step_began = 0.0, start, time.monotonic()
        if not loop.agreed(self.accelerator, not (self.watching.ended or self.watching.broken_off)):
            self.finished_steps = start  # it was killed after it had stopped early, or is cancelled before a step
            return
        self.finished_steps = loop.train(
            self.accelerator, self.model, batches, self.objective, self.optimizer, self.schedule, spec, start,
            self._after_step, self.method.regularizer,
        )

    def _after_step(self, result: loop.StepResult) -> bool:
        """Report, watch, checkpoint. Returns whether to go on."""
        spec, step = self.spec, result.step
        self.run.require_folder()
        self.method.after_step(step)
        if self.mean:
            self.mean.update()
        # Only steps count: previews and checkpoints between them would spoil the time left.
        self.step_seconds += time.monotonic() - self.step_began
        per_step = self.step_seconds / (step - self.first_step)
        rates = result.learning_rates
        self.emit(StepEvent(
            step=step, total=spec.training.steps, loss=result.loss, learning_rate=next(iter(rates.values())),
            learning_rates=rates, gradient_norm=result.gradient_norm, epoch=round(step / self.data.steps_per_epoch, 3),
            seconds_per_step=round(per_step, 4), seconds_left=round(per_step * (spec.training.steps - step), 1)))
        self.watching.after_step(step)
        if self._checkpoint_due(step) and step < spec.training.steps:
            self._checkpoint(step)
        self.step_began = time.monotonic()
        return not (self.stop_requested() or self.watching.ended or self.watching.broken_off)

    def _checkpoint_due(self, step: int) -> bool:
        """Every so many steps or minutes, whichever comes first."""
        spec = self.spec.checkpoints
        due = bool(spec.every) and step % spec.every == 0
        if spec.minutes:
            early = time.monotonic() - self.saved_at < 60 * spec.minutes
            due = not loop.agreed(self.accelerator, early) or due  # clocks differ, but processes must save together
        return due

    def mean_weights(self, wanted: bool = True) -> AbstractContextManager:
        """Inside, the parameters are those that a file gets: the running mean, if the run keeps one."""
        return self.mean.applied() if self.mean and wanted else nullcontext()

    def without_assistant(self) -> AbstractContextManager:
        """Inside, the denoiser computes as it does with the result: for images, not for losses, which compare what is
        trained with what it was."""
        return self.assistant.off() if self.assistant else nullcontext()

    def note(self, text: str):
        self.data.notes.append(text)
        self.emit(NoteEvent(text=text))

    def _checkpoint(self, step: int):
        """State to resume from, and beside it the file as it is now. Only the main process writes."""
        if self.accelerator.is_main_process:
            saved = self.save_files(self.run.checkpoint_folder(step), f"{self.run.name}_step{step:06d}", step)
            self.state.save(self.run, step)
            self.run.prune_checkpoints(self.spec.checkpoints.keep)
            self.emit(CheckpointEvent(step=step, files=saved.files))
        self.accelerator.wait_for_everyone()
        self.saved_at, self.saved_step = time.monotonic(), step

    def save_files(self, folder: Path, name: str, step: int) -> Saved:
        self.run.require_folder()
        folder.mkdir(parents=True, exist_ok=True)
        metadata = training_metadata(self.spec, self.family.base_metadata(self.spec.base), self.data.trained, step,
                                     step / self.data.steps_per_epoch, self.data.buckets, time.time())
        with self.mean_weights():
            return self.method.save(self.parts, folder, name, metadata)

    def _finish(self) -> RunReport | None:
        report = None
        if self.accelerator.is_main_process:
            self.emit(PhaseEvent(text="saving", stage="saving"))
            early = self.finished_steps < self.spec.training.steps
            saved = (self.watching.take_best() if early else
                     self.save_files(self.run.folder, self.run.name, self.finished_steps))
            self.watching.draw_overviews()
            losses = self.run.losses()
            tenth = max(1, len(losses) // 10)
            report = RunReport(**{
                **saved.model_dump(), "notes": (*self.data.notes, *saved.notes), "steps": self.finished_steps,
                "loss_first_tenth": sum(losses[:tenth]) / tenth, "loss_last_tenth": sum(losses[-tenth:]) / tenth,
                "seconds": round(time.monotonic() - self.began, 1), "stopped_early": early,
                "validation": self.watching.summary()})
            report.write(self.run.report_path)
        self.accelerator.wait_for_everyone()
        return report
