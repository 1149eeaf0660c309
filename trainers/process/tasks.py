"""What a worker process can be asked for. The spec in its folder says which, by `task`; without that, to train.

Light to import: the parent side reads from here what to say when a worker dies.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping

from ..files import read_json
from ..run_folder import Run
from ..stopping import unbroken


@dataclass(frozen=True)
class Task:
    title: str
    """Begins a sentence about what went wrong."""
    perform: Callable[..., dict]
    """perform(run, emit, stop_requested) returns the fields of the event "finished". It is broken off by a stop wherever it
    is, unless it says otherwise: files appear whole or not at all."""
    memory_advice: str
    resume_advice: Callable[[Run], str]
    stages: Mapping[str, float]
    """Its parts in their order, with about the share of the time that each takes."""


def _train(run: Run, emit, stop_requested) -> dict:
    spec = run.read_spec()
    emit("started", run=run.name, steps=spec.training.steps)
    from ..training.run import train_run  # seconds of imports; whoever waits has seen the start

    with unbroken():  # it says itself where it may be broken off
        return {"report": train_run(spec, run, emit, stop_requested)}


def _after_checkpoint(run: Run) -> str:
    checkpoints = run.checkpoints()
    if not checkpoints:
        return "There was no checkpoint yet; queue again to start anew."
    return f"Queue again to go on from the checkpoint of step {checkpoints[-1]}."


def _draw_class_images(run: Run, emit, stop_requested) -> dict:
    from ..sampling.class_images import make_class_images
    from ..spec.class_images import ClassImagesSpec

    spec = ClassImagesSpec.model_validate_json(run.spec_path.read_bytes())
    emit("started", run=run.name, images=spec.count)
    return {"images": len(make_class_images(spec, emit, stop_requested).images)}


def _caption(run: Run, emit, stop_requested) -> dict:
    from ..spec.captioning import CaptioningSpec

    spec = CaptioningSpec.model_validate_json(run.spec_path.read_bytes())
    emit("started", run=run.name, images=len(spec.dataset.images))
    from ..captioning.work import caption_images  # torch; whoever waits has seen the start

    return {"images": caption_images(spec, emit, stop_requested)}


def _make_file(run: Run, emit, stop_requested) -> dict:
    content = read_json(run.spec_path)
    emit("started", run=run.name)
    from ..tools.file_tasks import perform  # torch; whoever waits has seen the start

    return {"report": perform(content, run, emit, stop_requested)}


def _file_task(title: str, **stages: float) -> Task:
    return Task(title, _make_file, "Close other programs, or choose the device cpu",
                lambda run: "Queue again to start anew.", stages)


TASKS = {
    "training": Task(
        "Training", _train, "Lower batch_size or resolution, or switch gradient_checkpointing on", _after_checkpoint,
        {"start": 2, "masks": 1, "images": 8, "captions": 4, "denoiser": 4, "steps": 78, "saving": 3}),
    "class_images": Task(
        "Drawing", _draw_class_images, "Lower batch_size or resolution",
        lambda run: "Queue again to go on; the images that are there are kept.",
        {"start": 2, "captions": 2, "denoiser": 5, "drawing": 91}),
    "captioning": Task(
        "Captioning", _caption, "Choose a smaller model, or lower maximum_tokens or beams",
        lambda run: "Queue again to go on; the captions that are there are kept.",
        {"start": 2, "loading": 8, "describing": 90}),
    "extract": _file_task("Extraction", start=3, extracting=94, writing=3),
    "merge": _file_task("Merging", start=3, merging=94, writing=3),
    "convert": _file_task("Conversion", start=3, naming=12, converting=80, writing=5),
    "metadata": _file_task("Editing", start=50, writing=50),
    "bake": _file_task("Baking", start=3, loading=10, baking=87),
    "shard": _file_task("Splitting", start=3, loading=10, writing=87),
    "onnx": _file_task("Exporting", start=3, loading=12, baking=20, computing=10, exporting=35, writing=10, proving=10),
}


def caches_of(run: Run) -> Path:
    """The folder of caches that the spec of a run names; the run's own where it is unreadable."""
    content = read_json(run.spec_path)
    folders = content.get("folders") if isinstance(content, dict) else None
    caches = folders.get("caches") if isinstance(folders, dict) else None
    return Path(caches) if isinstance(caches, str) else run.folder


def task_of(run: Run) -> Task:
    content = read_json(run.spec_path)
    return TASKS.get(content.get("task") if isinstance(content, dict) else None, TASKS["training"])
