"""A training run as data: frozen, validated whole, before anything heavy starts.

A node, the command line and a test all build a `RunSpec`; the worker process receives it as JSON. Everything that
changes the result is in `RunSpec.identity`; where things lie on this disk is not.
"""
import hashlib
import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import UserError

VERSION = 1
MAXIMUM_SEED = 2**63 - 1
RESERVED_NAMES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class DatasetSpec(Part):
    """A light manifest: names, captions and sizes, never pixels. `notes` says what was skipped and why."""

    name: str
    pictures: tuple[Picture, ...] = Field(min_length=1)
    trigger: str = ""
    notes: tuple[str, ...] = ()


class LoraSpec(Part):
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W + alpha / rank · up · down."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0, le=4096)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["attention", "attention and feed-forward", "all with convolutions", "pattern"] = "attention"
    pattern: str = ""
    """Regular expression over the denoiser's module names, used when `targets` is "pattern"."""
    text_encoder_learning_rate: float = Field(0.0, ge=0, le=0.1)
    """0 leaves the text encoders untouched."""
    file_precision: Literal["fp32", "fp16", "bf16"] = "fp16"

    @model_validator(mode="after")
    def _pattern_compiles(self):
        if self.targets == "pattern":
            if not self.pattern:
                raise ValueError("targets is \"pattern\" but the pattern is empty; type one, for example attn2\\.to_[kv]$")
            try:
                re.compile(self.pattern)
            except re.error as problem:
                raise ValueError(f"the pattern {self.pattern!r} is not a regular expression: {problem}") from None
        return self


class OptimizerSpec(Part):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with the defaults of the diffusers training examples."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-4, gt=0, le=0.1)
    weight_decay: float = Field(1e-2, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0, le=1e-2)
    maximum_gradient_norm: float = Field(1.0, ge=0, le=1000)
    """0 switches clipping off."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas):
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both betas must be at least 0 and below 1")
        return betas


class ScheduleSpec(Part):
    name: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = "constant"
    warmup_steps: int = Field(0, ge=0, le=1_000_000)
    cycles: int = Field(1, ge=1, le=100)


class ObjectiveSpec(Part):
    """`min_snr_gamma` 0 switches the weighting off (Hang et al. 2023, arXiv:2303.09556; 5 in the paper).

    `noise_offset` adds one random value per channel to the noise, so that overall brightness can be learnt; about 0.05
    to 0.1 (kohya's documentation). `flow_shift` moves flow timesteps towards noise (Esser et al. 2024, eq. 23).
    """

    min_snr_gamma: float = Field(0.0, ge=0, le=100)
    noise_offset: float = Field(0.0, ge=0, le=1)
    flow_shift: float = Field(1.0, gt=0, le=100)


class TrainingSpec(Part):
    steps: int = Field(1500, ge=1, le=1_000_000)
    batch_size: int = Field(1, ge=1, le=1024)
    """Pictures in one forward pass, over all processes together."""
    accumulation: int = Field(1, ge=1, le=1024)
    resolution: int = Field(512, ge=64, le=4096, multiple_of=8)
    buckets: bool = True
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Share of captions replaced by the empty caption, which keeps classifier-free guidance working."""
    seed: int = Field(0, ge=0, le=MAXIMUM_SEED)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False


class PreviewSpec(Part):
    """Pictures drawn during training with DPM++ 2M. `every` 0 switches them off."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    every: int = Field(0, ge=0)
    sampler_steps: int = Field(20, ge=1, le=200)
    guidance: float = Field(7.0, ge=1, le=30)
    seed: int = Field(0, ge=0, le=MAXIMUM_SEED)


class CheckpointSpec(Part):
    """`every` 0 saves only at the end and on cancel. The newest `keep` checkpoints stay on disk."""

    every: int = Field(250, ge=0)
    keep: int = Field(2, ge=1, le=1000)


class FolderSpec(Part):
    """Where things lie on this computer. No part of the identity."""

    runs: str
    caches: str


class RunSpec(Part):
    version: int = VERSION
    name: str = Field(min_length=1, max_length=80)
    base: BaseModelSpec
    dataset: DatasetSpec
    method: LoraSpec = LoraSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    training: TrainingSpec = TrainingSpec()
    previews: PreviewSpec = PreviewSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
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

    @property
    def identity(self) -> str:
        """SHA-256 over everything that changes the result. Moving the files does not change it."""
        content = self.model_dump(mode="json", exclude={"folders": True, "device": True, "base": {"path", "configs"}})
        for picture in content["dataset"]["pictures"]:
            del picture["path"]
        del content["dataset"]["notes"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checked(build, **fields: Any):
    """Build a part of a spec, or raise one `UserError` that names every field that is wrong."""
    try:
        return build(**fields)
    except ValidationError as problem:
        raise UserError(explain(problem)) from None


def explain(problem: ValidationError) -> str:
    """All problems of a pydantic error as sentences, one a line."""
    lines = []
    for error in problem.errors(include_url=False):
        field = ".".join(str(part) for part in error["loc"])
        if error["type"] == "value_error":
            text = str(error["ctx"]["error"])
            lines.append(f"{field}: {text}." if field else f"{text[0].upper()}{text[1:]}.")
        else:
            lines.append(f"{field} is {error['input']!r}: {error['msg'].replace('Input should', 'it should')}.")
    return "\n".join(lines)
