"""The story of a run: load, cache, attach, loop, save.

Runs in the worker process. Everything it has to tell goes through `emit`; `stop_requested` is asked after every step.
"""
import time
from pathlib import Path
from typing import Callable, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from . import families, loop, methods, previews
from .artifacts.metadata import training_metadata
from .data.batches import Batches
from .errors import Cancelled, UserError
from .files import ensure_space, write_json
from .methods.protocol import Parts
from .model import ConditionedModel
from .objectives import make_objective
from .optimizers import make_optimizer
from .preparation import prepare_data
from .runs import Run
from .schedules import make_schedule
from .spec import RunSpec


class Emit(Protocol):
    def __call__(self, event: str, **fields): ...


def train_run(spec: RunSpec, run: Run, emit: Emit, stop_requested: Callable[[], bool] = lambda: False) -> dict:
    """Train, or go on training, until the file of the run is there. Returns the report.

    Raises UserError with a sentence, or Cancelled once a requested stop has been saved.
    """
    accelerator = make_accelerator(spec)
    try:
        return Training(spec, run, emit, stop_requested, accelerator).execute()
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)  # the next run may choose another precision
        GradientState._reset_state()


def make_accelerator(spec: RunSpec) -> Accelerator:
    """An Accelerator with the spec's precision: bf16 where the GPU has it, else fp16 on CUDA, else fp32."""
    on_cpu, precision = spec.device == "cpu", spec.memory.precision
    on_cuda = PartialState(cpu=on_cpu).device.type == "cuda"
    if precision == "auto":
        precision = "fp32" if not on_cuda else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and not on_cuda:
        raise UserError("precision is fp16, which only trains on an NVIDIA or AMD GPU. Choose auto, bf16 or fp32.")
    return Accelerator(cpu=on_cpu, mixed_precision={"fp32": "no"}.get(precision, precision))


class Training:
    """One run in memory: what the steps of the story share."""

    def __init__(self, spec: RunSpec, run: Run, emit: Emit, stop_requested: Callable[[], bool],
                 accelerator: Accelerator):
        self.spec, self.run, self.emit, self.stop_requested = spec, run, emit, stop_requested
        self.accelerator, self.device = accelerator, accelerator.device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
        self.family = families.get(spec.base.family)
        self.method = methods.make(spec.method, spec.optimizer.learning_rate, self.family)
        if spec.training.batch_size % accelerator.num_processes:
            raise UserError(f"batch_size is {spec.training.batch_size}, which {accelerator.num_processes} processes "
                            "cannot share evenly. Choose a multiple.")

    def execute(self) -> dict:
        notes = self.method.check(self.family, self.spec)
        trained_dtype = torch.float32 if self.method.trains_base() else self.dtype
        self.data = prepare_data(self.spec, self.family, self.dtype, self.accelerator,
                                 trained_dtype if self.method.trains_text() else None, notes, self._emit_encoding)
        self._attach()
        start = self._resume()
        self._loop(start)
        if self.finished_steps < self.spec.training.steps:
            self._checkpoint(self.finished_steps)
            raise Cancelled
        return self._finish()

    def _emit_encoding(self, event: str, **fields):
        """Encoding a large dataset takes minutes; a cancel is heard between pictures."""
        self.emit(event, **fields)
        if event == "encoding" and self.stop_requested():
            raise Cancelled

    def _attach(self):
        spec = self.spec
        self.emit("phase", text="loading the denoiser")
        denoiser = self.family.load_denoiser(spec.base, torch.float32 if self.method.trains_base() else self.dtype)
        self.parts = Parts(self.family, denoiser, self.data.text, spec.base)
        groups = self.method.attach(self.parts, spec.training.seed)
        self.parameters = {f"{group.name}.{name}": each for group in groups for name, each in group.parameters.items()}
        if spec.memory.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
            for encoder in self.data.text.encoders.values() if self.data.text else ():
                encoder.gradient_checkpointing_enable({"use_reentrant": False})
        optimizer = make_optimizer(spec.optimizer, groups)
        self.schedule = make_schedule(spec.schedule, optimizer, spec.training.steps)
        model = ConditionedModel(self.family, denoiser, self.data.text)
        self.model, self.optimizer = self.accelerator.prepare(model.to(self.device), optimizer)
        count = sum(each.numel() for each in self.parameters.values())
        # Weights and two moments in float32 per checkpoint, one checkpoint more than kept while saving.
        # Where the base itself is trained, each has a file of the whole model: half as much again as the denoiser at most.
        whole = 1.5 * sum(each.numel() for each in denoiser.parameters()) if self.method.trains_base() else 0
        per_checkpoint = 12 * count + int(whole * (4 if getattr(spec.method, "file_precision", "fp32") == "fp32" else 2))
        ensure_space(self.run.folder, per_checkpoint * (spec.checkpoints.keep + 1))
        self.emit("model", family=self.family.title, objective=spec.base.objective, device=str(self.device),
                  precision=str(self.dtype).removeprefix("torch."), trainable=count,
                  processes=self.accelerator.num_processes)

    def _resume(self) -> int:
        found = self.run.load_state()
        if not found:
            return 0
        step, state = found
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.emit("resumed", step=step)
        return step

    def _loop(self, start: int):
        spec = self.spec
        objective = make_objective(spec.base.objective, self.family.alphas_cumprod(spec.base), spec.objective)
        batches = Batches(
            self.data.subject, spec.training.accumulation, spec.training.seed, spec.training.caption_dropout,
            None if self.data.text else self.data.conditioning, self.device, self.accelerator.process_index,
            self.accelerator.num_processes, self.data.prior, spec.prior.weight if spec.prior else 0.0, self.data.prior_rate,
        )
        self.began, self.began_step = time.monotonic(), start
        if start == 0:
            self._preview(0)
        self.finished_steps = loop.train(
            self.accelerator, self.model, batches, objective, self.parameters.values(), self.optimizer, self.schedule,
            spec, start, self._after_step, self.method.regulariser,
        )

    def _after_step(self, result: loop.StepResult) -> bool:
        """Report, preview, checkpoint. Returns whether to go on."""
        spec, step = self.spec, result.step
        self.method.after_step(step)
        elapsed = time.monotonic() - self.began
        per_step = elapsed / (step - self.began_step)
        self.emit("step", step=step, total=spec.training.steps, loss=result.loss, learning_rate=result.learning_rate,
                  gradient_norm=result.gradient_norm, epoch=round(step / self.data.steps_per_epoch, 3),
                  seconds_per_step=round(per_step, 4), seconds_left=round(per_step * (spec.training.steps - step), 1))
        last = step == spec.training.steps
        if spec.previews.every and (step % spec.previews.every == 0 or last):
            self._preview(step)
        if spec.checkpoints.every and step % spec.checkpoints.every == 0 and not last:
            self._checkpoint(step)
        return not self.stop_requested()

    def _preview(self, step: int):
        spec = self.spec
        if not (spec.previews.every and spec.previews.prompts and self.accelerator.is_main_process):
            return
        model, vae = self.accelerator.unwrap_model(self.model).eval(), self.data.vae
        try:
            with self.accelerator.autocast():
                pictures = list(previews.draw_previews(
                    self.family, spec.base, model.denoiser, vae.to(self.device), self.data.latent_format, spec.previews,
                    lambda prompt: model.condition([prompt]) if self.data.text else self.data.conditioning([prompt]),
                    self.data.preview_resolution, self.device,
                ))
        except torch.OutOfMemoryError:
            self._note(f"the preview at step {step} was left out, because it needs more memory than is free")
            return
        finally:
            vae.cpu()
        path = self.run.folder / "previews" / f"step_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        previews.contact_sheet(pictures).save(path)
        self.emit("preview", step=step, path=str(path))

    def _note(self, text: str):
        self.data.notes.append(text)
        self.emit("note", text=text)

    def _checkpoint(self, step: int):
        """State to resume from, and beside it the file as it is now. Only the main process writes."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            saved = self._save_files(self.run.checkpoint_folder(step), f"{self.run.name}_step{step:06d}", step)
            self.run.save_state(step, {
                "parameters": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            })
            self.run.prune_checkpoints(self.spec.checkpoints.keep)
            self.emit("checkpoint", step=step, files=saved["files"])
        self.accelerator.wait_for_everyone()

    def _save_files(self, folder: Path, name: str, step: int) -> dict:
        folder.mkdir(parents=True, exist_ok=True)
        metadata = training_metadata(self.spec, self.family.metadata, step, step / self.data.steps_per_epoch,
                                     self.data.buckets, time.time())
        return self.method.save(self.parts, folder, name, metadata)

    def _finish(self) -> dict:
        report = {}
        if self.accelerator.is_main_process:
            self.emit("phase", text="saving")
            facts = self._save_files(self.run.folder, self.run.name, self.finished_steps)
            losses = self.run.losses()
            tenth = max(1, len(losses) // 10)
            report = {
                "steps": self.finished_steps, **facts,
                "loss_first_tenth": sum(losses[:tenth]) / tenth, "loss_last_tenth": sum(losses[-tenth:]) / tenth,
                "seconds": round(time.monotonic() - self.began, 1),
                "notes": [*self.data.notes, *facts.get("notes", [])],
            }
            write_json(self.run.report_path, report)
        self.accelerator.wait_for_everyone()
        return report
