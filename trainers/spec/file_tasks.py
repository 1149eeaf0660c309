"""Tasks that make files out of files, as data: extraction, and the tools around LoRA files."""
import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from . import FolderSpec
from .part import Part, RunName

Rule = Literal["exact", "fixed", "energy", "ratio", "knee"]
LoraPrecision = Literal["fp32", "bf16", "fp16", "fp8", "int8"]


class FileTaskSpec(Part):
    """What all of them have. `name` names the folder and the file that is made."""

    version: Literal[1] = 1
    task: str
    name: RunName
    folders: FolderSpec
    device: str = "auto"

    def inputs(self) -> list[str]:
        """Paths of the files and folders that are read."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """SHA-256 over everything that changes the result; files count by name, size and time of change, so that moving
        them to another folder changes nothing."""
        content = self.model_dump(mode="json", exclude={"folders", "device"})
        text, facts = json.dumps(content, sort_keys=True), []
        for number, path in enumerate(dict.fromkeys(path for path in self.inputs() if path)):
            text = text.replace(json.dumps(path), f'"input {number}"')
            facts.append(_facts(Path(path)))
        return hashlib.sha256(json.dumps([text, facts]).encode()).hexdigest()


def _facts(path: Path) -> list:
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else (file.name,) for file in files]


def check_threshold(rule: str, threshold: float):
    if rule == "energy" and threshold > 1:
        raise ValueError(f"threshold is {threshold:g}, but with the rule \"energy\" it is a fraction, at most 1; 0.9 keeps "
                         "nine tenths")
    if rule == "ratio" and threshold < 1:
        raise ValueError(f"threshold is {threshold:g}, but with the rule \"ratio\" it is how many times smaller than the "
                         "largest a value may be; 10 is usual")


class ExtractionSpec(FileTaskSpec):
    """`rule` picks the rank of each layer, at most `rank`: "fixed" takes `rank` itself; "energy" the smallest that keeps
    `threshold` of the squared norm; "ratio" the singular values above 1 / `threshold` of the largest; "knee" the point
    where their curve bends."""

    task: Literal["extract"] = "extract"
    tuned: str = Field(min_length=1)
    base: str = Field(min_length=1)
    tuned_name: str = ""
    """What people and metadata call the tuned model; empty: its file's name."""
    base_name: str = ""
    rule: Literal["fixed", "energy", "ratio", "knee"] = "fixed"
    rank: int = Field(default=32, ge=1, le=1024)
    convolution_rank: int = Field(default=0, ge=0, le=1024)
    """Cap for 3×3 convolutions; 0: `rank`."""
    threshold: float = Field(default=0.9, gt=0, le=10_000)
    convolutions: bool = True
    text_encoders: bool = True
    clamp: float = Field(default=1.0, gt=0, le=1)
    """Quantile at which the factors' outliers are cut off; 1: none (kohya uses 0.99)."""
    exact: bool = False
    file_precision: Literal["fp32", "fp16", "bf16"] = "fp16"

    def inputs(self) -> list[str]:
        return [self.tuned, self.base]

    @model_validator(mode="after")
    def _threshold_fits(self):
        check_threshold(self.rule, self.threshold)
        return self


class LoraInput(Part):
    """A LoRA file and how strongly it counts, for the denoiser and for text encoders; below 0 it is subtracted."""

    path: str = Field(min_length=1)
    model: float = Field(default=1.0, ge=-100, le=100)
    text: float = Field(default=1.0, ge=-100, le=100)


class MergeSpec(FileTaskSpec):
    """Several LoRAs, or one, as one: "exact" joins the factors; the other rules, which are those of extraction, cut the sum
    to its best approximation of a smaller rank."""

    task: Literal["merge"] = "merge"
    loras: tuple[LoraInput, ...] = Field(min_length=1, max_length=1000)
    rule: Rule = "exact"
    rank: int = Field(default=32, ge=1, le=1024)
    threshold: float = Field(default=0.9, gt=0, le=10_000)
    file_precision: LoraPrecision = "fp16"

    def inputs(self) -> list[str]:
        return [lora.path for lora in self.loras]

    @model_validator(mode="after")
    def _threshold_fits(self):
        check_threshold(self.rule, self.threshold)
        return self

    @model_validator(mode="after")
    def _something_counts(self):
        if not any(lora.model or lora.text for lora in self.loras):
            raise ValueError("every strength is 0, so nothing is left to merge; raise one")
        return self


class ConvertSpec(FileTaskSpec):
    """A LoRA under other names or in another precision. `base` is a model that it fits, for the names of its layers; empty:
    the released model of its family."""

    task: Literal["convert"] = "convert"
    lora: str = Field(min_length=1)
    base: str = ""
    names: Literal["same", "kohya", "diffusers", "comfyui"] = "same"
    file_precision: Literal["same", "fp32", "bf16", "fp16", "fp8", "int8"] = "same"

    def inputs(self) -> list[str]:
        return [self.lora, self.base]


class MetadataSpec(FileTaskSpec):
    """A LoRA with other metadata; its tensors, and so its hash, stay the same."""

    task: Literal["metadata"] = "metadata"
    lora: str = Field(min_length=1)
    changes: tuple[tuple[str, str], ...] = ()
    """(name, text); an empty text removes the entry."""
    forget_training: bool = False
    """Remove what tells of the training and its images, and keep what programs need to recognize the file."""

    def inputs(self) -> list[str]:
        return [self.lora]


class BakeSpec(FileTaskSpec):
    """A checkpoint with LoRAs worked into its weights."""

    task: Literal["bake"] = "bake"
    base: str = Field(min_length=1)
    loras: tuple[LoraInput, ...] = Field(min_length=1, max_length=1000)
    file_precision: Literal["same", "fp32", "bf16", "fp16"] = "same"

    def inputs(self) -> list[str]:
        return [self.base, *(lora.path for lora in self.loras)]


class ShardSpec(FileTaskSpec):
    """A checkpoint cut into shards of at most `shard_size` GB; 0 joins the shards of an index into one file."""

    task: Literal["shard"] = "shard"
    checkpoint: str = Field(min_length=1)
    shard_size: float = Field(default=2.0, ge=0, le=1000)

    def inputs(self) -> list[str]:
        return [self.checkpoint]


class OnnxSpec(FileTaskSpec):
    """A base's denoiser as an ONNX file, with LoRAs worked in."""

    task: Literal["onnx"] = "onnx"
    base: str = Field(min_length=1)
    configs: str = ""
    """Folder with the component configs of a single file; empty: its family's own."""
    loras: tuple[LoraInput, ...] = Field(default=(), max_length=1000)
    file_precision: Literal["fp32", "fp16"] = "fp32"

    def inputs(self) -> list[str]:
        return [self.base, *(lora.path for lora in self.loras)]
