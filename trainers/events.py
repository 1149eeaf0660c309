"""What a worker process tells while it works: one class for each kind of event, one JSON object on a line.

The lines of `events.jsonl` and those that go to the parent are written and read by these definitions. A line of a kind that
is not known here, from a newer version perhaps, and a broken line are passed over.
"""
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .reports import SavedFile, Text

VERSION = 1
"""Of the form of events. Lines without a version are older, and have the same fields."""


class Event(BaseModel):
    """`time` in seconds since 1970 and `progress`, the fraction of the whole task that is done, are filled in on the way
    out. Numbers that are not finite are written as null."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: str
    version: int = VERSION
    time: float = 0.0
    progress: float = 0.0

    def stage_done(self) -> tuple[str, int, int]:
        """(stage of the task, how much of it is done, out of how much); no stage where the event says nothing of it."""
        return "", 0, 1


class StartedEvent(Event):
    event: Literal["started"] = "started"
    run: Text
    steps: int = 0
    images: int = 0


class PhaseEvent(Event):
    """What is being done, in words; `stage` where a part of the task begins with it."""

    event: Literal["phase"] = "phase"
    text: Text
    stage: str = ""

    def stage_done(self) -> tuple[str, int, int]:
        return self.stage, 0, 1


class EncodingEvent(Event):
    event: Literal["encoding"] = "encoding"
    what: Literal["images", "captions", "masks"]
    done: int
    total: int

    def stage_done(self) -> tuple[str, int, int]:
        return self.what, self.done, self.total


class NoteEvent(Event):
    """Something that people should know, without its full stop."""

    event: Literal["note"] = "note"
    text: Text


class ModelEvent(Event):
    """What trains, and where. `trainable` counts numbers."""

    event: Literal["model"] = "model"
    family: str
    prediction_type: str
    device: str
    precision: str
    trainable: int
    processes: int = 1


class ResumedEvent(Event):
    """`step` steps were finished before."""

    event: Literal["resumed"] = "resumed"
    step: int
    total: int = 0

    def stage_done(self) -> tuple[str, int, int]:
        return "steps", self.step, self.total


class StepEvent(Event):
    """A finished optimizer step. `learning_rate` is that of the first group, `learning_rates` has all by name;
    `gradient_norm` is from before clipping; times are in seconds."""

    event: Literal["step"] = "step"
    step: int
    total: int = 0
    loss: float | None
    learning_rate: float = 0.0
    learning_rates: dict[str, float] = {}
    gradient_norm: float | None = None
    epoch: float = 0.0
    seconds_per_step: float = 0.0
    seconds_left: float = 0.0

    def stage_done(self) -> tuple[str, int, int]:
        return "steps", self.step, self.total


class PreviewEvent(Event):
    event: Literal["preview"] = "preview"
    step: int
    path: Text


class ValidationEvent(Event):
    """The mean loss on the held-out images."""

    event: Literal["validation"] = "validation"
    step: int
    loss: float | None


class OverviewEvent(Event):
    """An image of the whole run: its previews or its losses."""

    event: Literal["overview"] = "overview"
    path: Text


class CheckpointEvent(Event):
    """A checkpoint was saved; `files` lie beside its state."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int
    files: tuple[SavedFile, ...] = ()


class CaptionedEvent(Event):
    """An image was described: the last of `done`."""

    event: Literal["captioned"] = "captioned"
    done: int
    total: int
    path: Text
    caption: Text

    def stage_done(self) -> tuple[str, int, int]:
        return "describing", self.done, self.total


class ClassImagesEvent(Event):
    """Class images are there; `path` is the last."""

    event: Literal["class_images"] = "class_images"
    done: int
    total: int
    path: Text

    def stage_done(self) -> tuple[str, int, int]:
        return "sampling", self.done, self.total


class WorkingEvent(Event):
    """A file tool at work: `text` is its stage."""

    event: Literal["working"] = "working"
    text: str
    done: int
    total: int

    def stage_done(self) -> tuple[str, int, int]:
        return self.text, self.done, self.total


class CancellingEvent(Event):
    event: Literal["cancelling"] = "cancelling"


class FinishedEvent(Event):
    """All is done. The report, where the task has one, lies in the folder of the run."""

    event: Literal["finished"] = "finished"
    images: int = 0


class CancelledEvent(Event):
    """Stopped on request; `step` has the newest checkpoint, 0 for none. `message` is there only where more is to be said."""

    event: Literal["cancelled"] = "cancelled"
    step: int = 0
    message: Text = ""


class FailedEvent(Event):
    event: Literal["failed"] = "failed"
    message: Text


AnyEvent = (StartedEvent | PhaseEvent | EncodingEvent | NoteEvent | ModelEvent | ResumedEvent | StepEvent | PreviewEvent
            | ValidationEvent | OverviewEvent | CheckpointEvent | CaptionedEvent | ClassImagesEvent | WorkingEvent
            | CancellingEvent | FinishedEvent | CancelledEvent | FailedEvent)
KINDS: tuple[type[Event], ...] = get_args(AnyEvent)
FINAL = (FinishedEvent, CancelledEvent, FailedEvent)
"""Each is the last of a process."""
Emit = Callable[[Event], None]
"""How work tells of itself."""
_ADAPTER: TypeAdapter[Event] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="event")])


def silent(event: Event):
    """An `Emit` for work that nobody follows."""


def read_event(line: str | bytes) -> Event | None:
    """The event on a line; None for one that cannot be read here."""
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError:
        return None


def read_events(lines: Iterator[str] | Iterator[bytes]) -> Iterator[Event]:
    return (event for line in lines if (event := read_event(line)) is not None)
