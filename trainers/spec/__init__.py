"""A training run as data: frozen, validated whole, before anything heavy starts.

A node, the command line and a test all build a `RunSpec`; the worker process receives it as JSON. Everything that
changes the result is in `RunSpec.identity`; where things lie on this disk is not.
"""
import hashlib
import json
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from .methods import FullSpec, HypernetworkSpec, LoraSpec, MethodSpec, PivotalSpec, TextualInversionSpec
from .part import MAXIMUM_SEED, Part, checked, explain
from .settings import (
    CheckpointSpec,
    MemorySpec,
    ObjectiveSpec,
    OptimizerSpec,
    PreviewSpec,
    ScheduleSpec,
    TrainingSpec,
    ValidationSpec,
)

__all__ = [
    "MAXIMUM_SEED", "BaseModelSpec", "CheckpointSpec", "DatasetSpec", "FolderSpec", "FullSpec", "HypernetworkSpec",
    "LoraSpec", "MemorySpec", "MethodSpec", "ObjectiveSpec", "OptimizerSpec", "Part", "Picture", "PivotalSpec",
    "PreviewSpec", "PriorSpec", "RunSpec", "ScheduleSpec", "TextualInversionSpec", "TrainingSpec", "ValidationSpec",
    "checked", "explain",
]

VERSION = 2
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


class BaseModelSpec(Part):
    """The model to start from. `fingerprint` changes when the file does; `name` is what people see."""

    family: str
    path: str
    name: str
    layout: Literal["single_file", "diffusers"]
    objective: Literal["epsilon", "v_prediction", "flow"]
    fingerprint: str
    configs: str = ""
    """Folder with the component configs of a single file; empty: the family's own."""


class Picture(Part):
    """One training picture. `digest` is the SHA-256 of the file, `size` is (width, height) in pixels, upright."""

    path: str
    name: str
    caption: str
    size: tuple[int, int]
    digest: str
    repeats: int = Field(1, ge=1, le=10_000)
    mask: str = ""
    """Path of a mask file, white where the picture counts; empty: the picture's own transparency, if it has one."""
    mask_digest: str = ""


class DatasetSpec(Part):
    """A light manifest: names, captions and sizes, never pixels. `notes` says what was skipped and why."""

    name: str
    pictures: tuple[Picture, ...] = Field(min_length=1)
    trigger: str = ""
    notes: tuple[str, ...] = ()


class PriorSpec(Part):
    """Class pictures that hold the base's idea of the class (prior preservation; Ruiz et al. 2022, eq. 2)."""

    dataset: DatasetSpec
    weight: float = Field(1.0, ge=0, le=100)
    ratio: float = Field(1.0, gt=0, le=16)
    """Class pictures trained for every picture of the subject."""


class FolderSpec(Part):
    """Where things lie on this computer. No part of the identity."""

    runs: str
    caches: str


class RunSpec(Part):
    version: int = VERSION
    name: str = Field(min_length=1, max_length=80)
    base: BaseModelSpec
    dataset: DatasetSpec
    method: MethodSpec = LoraSpec()
    prior: PriorSpec | None = None
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    training: TrainingSpec = TrainingSpec()
    memory: MemorySpec = MemorySpec()
    previews: PreviewSpec = PreviewSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    validation: ValidationSpec = ValidationSpec()
    folders: FolderSpec
    device: str = "auto"

    @field_validator("name")
    @classmethod
    def _name_is_a_file_name(cls, name):
        if not re.fullmatch(r"[^\W_][\w .+\-]*", name) or name.endswith((" ", ".")) or name.lower() in RESERVED_NAMES:
            raise ValueError(
                f"{name!r} cannot name a run; use letters, digits, spaces and . _ + - only, "
                "begin with a letter or digit, and name no folders"
            )
        return name

    @model_validator(mode="after")
    def _schedule_fits(self):
        if self.schedule.warmup_steps >= self.training.steps and self.schedule.warmup_steps > 0:
            raise ValueError(
                f"warm-up takes {self.schedule.warmup_steps} steps but the run has only {self.training.steps}; "
                "shorten the warm-up"
            )
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train(self):
        if self.validation.share and len({picture.digest for picture in self.dataset.pictures}) < 2:
            raise ValueError(
                f"the dataset {self.dataset.name!r} has a single picture, which cannot be trained and held out for "
                "validation too; add pictures, or set the validation share to 0"
            )
        if self.validation.patience and not self.validation.share:
            raise ValueError(
                f"patience {self.validation.patience} waits for a better validation loss, but the validation share is 0; "
                "hold out a share of the pictures, for example 0.1, or set patience to 0"
            )
        return self

    @property
    def identity(self) -> str:
        """SHA-256 over everything that changes the result. Moving the files does not change it, and neither does a new
        field of a later version that is left at its default."""
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={
            "folders": True, "device": True, "base": {"path", "configs"}})
        content["version"], content["method"] = self.version, {"kind": self.method.kind, **content.get("method", {})}
        for dataset in [content["dataset"], *([content["prior"]["dataset"]] if self.prior else [])]:
            for picture in dataset["pictures"]:
                del picture["path"]
                picture.pop("mask", None)
            dataset.pop("notes", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
