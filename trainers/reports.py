"""What is told of finished work: the files that were saved, and what a run or a tool says of them in `report.json`.

One definition writes and reads each. A report names its task, by which its class is found again.
"""
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from .errors import UserError
from .files import read_json, write_json

VERSION = 1
"""Of the form of reports. Those without a version are older and read too."""
FileKind = Literal["lora", "checkpoint", "diffusion_model", "shard", "embedding", "hypernetwork", "onnx"]
"""What a file is to loaders. A "diffusion_model" is a denoiser alone; a "shard" is of use only together with the others."""


def _writable(text: Any) -> Any:
    """Lone surrogates, in file names for example, cannot be written as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


R = TypeVar("R", bound="Report")
Text = Annotated[str, BeforeValidator(_writable)]


class Record(BaseModel):
    """Frozen. Unknown fields are those of a newer version and left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class SavedFile(Record):
    """A file by its name in the folder where it was saved."""

    kind: FileKind
    name: Text
    bytes: int

    @classmethod
    def at(cls, kind: FileKind, path: Path) -> "SavedFile":
        return cls(kind=kind, name=path.name, bytes=path.stat().st_size)

    @property
    def is_loadable(self) -> bool:
        """Whether a loader takes it by itself."""
        return self.kind not in ("shard", "onnx")


class SavedFiles(Record):
    files: tuple[SavedFile, ...]
    notes: tuple[Text, ...] = ()
    """Sentences for people, without their full stop."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class Saved(SavedFiles):
    """What a method saved. `change_norm` is the size of what was learned, 0 for nothing; of the others each method fills
    in those that it knows."""

    change_norm: float
    keys: int = 0
    """Tensors in the file."""
    layers: int = 0
    relative_change: float | None = None
    """How far weights moved, as a fraction of their length."""
    token: Text = ""
    vectors: int = 0
    widths: tuple[int, ...] = ()
    parameters: int = 0


class Report(SavedFiles):
    """Of finished work. `unmatched_keys` are those that the host would not load: None where that cannot be known."""

    classes: ClassVar[dict[str, type["Report"]]] = {}

    task: str
    version: int = VERSION
    load_checked: bool = False
    unmatched_keys: tuple[Text, ...] | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any):
        Report.classes[cls.model_fields["task"].default] = cls

    @model_validator(mode="before")
    @classmethod
    def _from_older(cls, content: Any) -> Any:
        if isinstance(content, dict) and "version" not in content and "unmatched_keys" in content:
            return {**content, "load_checked": True}
        return content

    def checked(self: R, unmatched_keys: list[str] | None) -> R:
        """With the host's verdict."""
        keys = None if unmatched_keys is None else tuple(map(_writable, unmatched_keys))
        return self.model_copy(update={"load_checked": True, "unmatched_keys": keys})

    def write(self, path: Path):
        write_json(path, self.model_dump(mode="json"))


def read_report(path: Path, task: str) -> Report | None:
    """The report at `path`; None where there is none or it is damaged. `task` is that of the run, for older reports, which
    do not say it. Raises UserError for one of a newer version."""
    content = read_json(path)
    if not isinstance(content, dict):
        return None
    task = content.get("task", task)
    version = content.get("version", 0)
    if task not in Report.classes or (isinstance(version, int) and version > VERSION):
        raise UserError(f"The folder {path.parent.name!r} was written by a newer version of FineTune. Update the pack, or "
                        "choose another name.")
    try:
        return Report.classes[task].model_validate({**content, "task": task})
    except ValidationError:
        return None


class ValidationSummary(Record):
    """Losses on held-out images: before the training, the best and its step, the last. None before the first of them."""

    first: float | None
    best: float | None
    best_step: int
    last: float | None


class RunReport(Report, Saved):
    """Of a training run. Losses are means over a tenth of the steps."""

    task: Literal["training"] = "training"
    steps: int
    loss_first_tenth: float
    loss_last_tenth: float
    seconds: float
    stopped_early: bool = False
    validation: ValidationSummary | None = None


# ---- file tools ----------------------------------------------------------------------------------------------------

class ExtractedLayer(Record):
    """`energy` is the squared norm of the change, `kept` the fraction of it that is in the factors, by precision of the
    file."""

    key: Text
    block: str
    rank: int
    energy: float
    kept: dict[str, float]
    bytes: int


class ExtractionReport(Report):
    """`left_out_energy` is the squared norm of what changed outside the layers, `kept` a fraction by precision."""

    task: Literal["extract"] = "extract"
    keys: int
    layers: int
    unchanged: int
    family: str
    tuned: Text
    base: Text
    precision: str
    rows: tuple[ExtractedLayer, ...]
    change_norm: float
    left_out: int
    left_out_energy: float
    kept: dict[str, float]


class MergeReport(Report):
    """`ranks` are the smallest and the largest; `energy` is the squared norm of the sum, `kept` a fraction of it."""

    task: Literal["merge"] = "merge"
    keys: int
    layers: int
    ranks: tuple[int, int]
    change_norm: float
    energy: float
    kept: float
    precision: str


class ConversionReport(Report):
    """`before` is the size of the source in bytes, `error` that of the change relative to the change."""

    task: Literal["convert"] = "convert"
    keys: int
    layers: int
    names: str
    precision: str
    family: str
    before: int
    error: float
    change_norm: float


class MetadataReport(Report):
    task: Literal["metadata"] = "metadata"
    keys: int
    metadata: dict[Text, Text]


class BakeReport(Report):
    task: Literal["bake"] = "bake"
    keys: int
    layers: int
    loras: tuple[Text, ...]
    base: Text
    precision: str


class ShardReport(Report):
    task: Literal["shard"] = "shard"
    keys: int


class OnnxReport(Report):
    """`error` is the largest difference from what torch computes, relative to the largest value."""

    task: Literal["onnx"] = "onnx"
    inputs: tuple[str, ...]
    error: float
    layers: int
    loras: tuple[Text, ...]
    base: Text
    precision: str
