"""Runs of the engine inside the test process."""
import contextlib

from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.errors import Cancelled
from finetune.trainers.events import silent
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import Training, train_run


def nothing(captions, crops) -> Conditioning:
    """What batches know before a step, where no model asks."""
    return Conditioning()


def losses_of(spec, **arguments):
    """Train and return (losses, run)."""
    losses, run = [], open_run(spec)
    train_run(spec, run, lambda event: losses.append(event.loss) if event.event == "step" else None, **arguments)
    return losses, run


def losses_with_a_stop(spec, after: int, folder):
    """Train in a folder of its own, stop after some steps, and go on: (losses, run)."""
    spec = spec.model_copy(update={"folders": specs.FolderSpec(runs=str(folder), caches=spec.folders.caches)})
    first, count = [], iter(range(1, 10_000))
    with contextlib.suppress(Cancelled):
        train_run(spec, open_run(spec), lambda event: first.append(event.loss) if event.event == "step" else None,
                  stop_requested=lambda: bool(first) and next(count) == after)
    assert len(first) == after
    second, run = losses_of(spec)
    return first + second, run


def training_of(spec) -> Training:
    """A run that has not begun, to look into."""
    return Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
