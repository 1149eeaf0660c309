"""What a worker process can be asked for. The spec in its folder says which, by `task`; without that, to train.

Light to import: the parent side reads from here what to say when a worker dies.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..events import Emit, FinishedEvent, StartedEvent
from ..files import read_json
from ..run_folder import Run
from ..stopping import unbroken
from ..tools.file_tasks import TOOLS, FileTool, StopRequested, perform


@dataclass(frozen=True)
class Task:
    title: str
    """Begins a sentence about what went wrong."""
    perform: Callable[[Run, Emit, StopRequested], FinishedEvent]
    """It is broken off by a stop wherever it is, unless it says otherwise: files appear whole or not at all."""
    memory_advice: str
    resume_advice: Callable[[Run], str]
    stages: Mapping[str, float]
    """Its parts in their order, with about the fraction of the time that each takes."""


def _train(run: Run, emit: Emit, stop_requested: StopRequested) -> FinishedEvent:
    spec = run.read_spec()
    emit(StartedEvent(run=run.name, steps=spec.training.steps))
    from ..training.run import train_run  # seconds of imports; whoever waits has seen the start

    with unbroken():  # it says itself where it may be broken off
        train_run(spec, run, emit, stop_requested)
    return FinishedEvent()


def _after_checkpoint(run: Run) -> str:
    checkpoints = run.checkpoints()
    if not checkpoints:
        return "There was no checkpoint yet; queue again to start anew."
    return f"Queue again to go on from the checkpoint of step {checkpoints[-1]}."


def _make_class_images(run: Run, emit: Emit, stop_requested: StopRequested) -> FinishedEvent:
    from ..sampling.class_images import make_class_images
    from ..spec.class_images import ClassImagesSpec

    spec = ClassImagesSpec.model_validate_json(run.spec_path.read_bytes())
    emit(StartedEvent(run=run.name, images=spec.count))
    return FinishedEvent(images=len(make_class_images(spec, emit, stop_requested).images))


def _caption(run: Run, emit: Emit, stop_requested: StopRequested) -> FinishedEvent:
    from ..spec.captioning import CaptioningSpec

    spec = CaptioningSpec.model_validate_json(run.spec_path.read_bytes())
    emit(StartedEvent(run=run.name, images=len(spec.dataset.images)))
    from ..captioning.work import caption_images  # torch; whoever waits has seen the start

    return FinishedEvent(images=caption_images(spec, emit, stop_requested))


def _file_task(tool: FileTool) -> Task:
    def make(run: Run, emit: Emit, stop_requested: StopRequested) -> FinishedEvent:
        spec = tool.spec.model_validate_json(run.spec_path.read_bytes())
        emit(StartedEvent(run=run.name))
        perform(spec, run, emit, stop_requested)
        return FinishedEvent()

    return Task(tool.title, make, "Close other programs, or choose the device cpu",
                lambda run: "Queue again to start anew.", tool.stages)


TASKS = {
    "training": Task(
        "Training", _train, "Lower batch_size or resolution, or switch gradient_checkpointing on", _after_checkpoint,
        {"start": 2, "masks": 1, "images": 8, "captions": 4, "denoiser": 4, "steps": 78, "saving": 3}),
    "class_images": Task(
        "Sampling", _make_class_images, "Lower batch_size or resolution",
        lambda run: "Queue again to go on; the images that are there are kept.",
        {"start": 2, "captions": 2, "denoiser": 5, "sampling": 91}),
    "captioning": Task(
        "Captioning", _caption, "Choose a smaller model, or lower maximum_tokens or beams",
        lambda run: "Queue again to go on; the captions that are there are kept.",
        {"start": 2, "loading": 8, "describing": 90}),
}


def caches_of(run: Run) -> Path:
    """The folder of caches that the spec of a run names; the run's own where it is unreadable."""
    content = read_json(run.spec_path)
    folders = content.get("folders") if isinstance(content, dict) else None
    caches = folders.get("caches") if isinstance(folders, dict) else None
    return Path(caches) if isinstance(caches, str) else run.folder


def task_of(run: Run) -> Task:
    return _file_task(TOOLS[run.task]) if run.task in TOOLS else TASKS.get(run.task, TASKS["training"])
