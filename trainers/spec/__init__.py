"""A training run as data: frozen, validated whole, before anything heavy starts.

A node, the command line and a test all build a `RunSpec`; the worker process receives it as JSON. Everything that
changes the result is in `RunSpec.identity`; where things lie on this disk is not.
"""
import hashlib
import json

from pydantic import model_validator

from .base_model import AssistantSpec, BaseModelSpec, ComponentSpec, check_resolution
from .dataset import AugmentationSpec, CaptionVariationSpec, DatasetImage, DatasetSpec
from .methods import FullSpec, HypernetworkSpec, LoraSpec, MethodSpec, PivotalSpec, TextualInversionSpec
from .part import MAXIMUM_SEED, Part, RunName, checked, explain, number
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
    "MAXIMUM_SEED", "AssistantSpec", "AugmentationSpec", "BaseModelSpec", "CaptionVariationSpec", "CheckpointSpec",
    "ComponentSpec", "DatasetSpec", "FolderSpec", "FullSpec", "HypernetworkSpec", "LoraSpec", "MemorySpec", "MethodSpec",
    "ObjectiveSpec", "OptimizerSpec", "Part", "DatasetImage", "PivotalSpec", "PreviewSpec", "PriorSpec", "RunName",
    "RunSpec", "ScheduleSpec", "TextualInversionSpec", "TrainingSpec", "ValidationSpec", "checked", "explain",
]

VERSION = 2
USUAL_PREVIEWS = {"sampler_steps": 20, "guidance": 7.0}
"""What 0 means for epsilon and v models. It was written out before other models had values of their own."""


class PriorSpec(Part):
    """Class images that hold the base's idea of the class (prior preservation; Ruiz et al. 2022, eq. 2)."""

    dataset: DatasetSpec
    weight: float = number(1.0, ge=0, le=100, step=0.05)
    ratio: float = number(1.0, ge=0.05, le=16, step=0.05)
    """Class images trained for every image of the subject."""


class FolderSpec(Part):
    """Where things lie on this computer. No part of the identity."""

    runs: str
    caches: str


class RunSpec(Part):
    version: int = VERSION
    name: RunName
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

    @model_validator(mode="after")
    def _resolution_fits(self):
        check_resolution(self.base, self.training.resolution)
        return self

    @model_validator(mode="after")
    def _schedule_fits(self):
        if self.schedule.warmup_steps >= self.training.steps and self.schedule.warmup_steps > 0:
            raise ValueError(
                f"warm-up takes {self.schedule.warmup_steps} steps but the run has only {self.training.steps}; "
                "shorten the warm-up"
            )
        decay = round(self.schedule.decay_fraction * self.training.steps)
        if self.schedule.name == "warmup_stable_decay" and self.schedule.warmup_steps + decay > self.training.steps:
            raise ValueError(
                f"warm-up takes {self.schedule.warmup_steps} steps and the decay {decay}, but the run has only "
                f"{self.training.steps}; shorten the warm-up or lower decay_fraction"
            )
        if self.schedule.name == "polynomial" and self.optimizer.learning_rate <= 1e-7:
            raise ValueError("the polynomial schedule ends at the rate 1e-7, which is not below yours; use linear")
        return self

    @model_validator(mode="after")
    def _rates_fit(self):
        name, fields = self.optimizer.name, ("text_encoder_learning_rate", "embedding_learning_rate")
        others = {field: getattr(self.method, field, 0.0) for field in fields}
        for field, rate in {"learning_rate": self.optimizer.learning_rate, **others}.items():
            if name == "prodigy" and 0 < rate < 0.01:
                raise ValueError(
                    f"prodigy finds the learning rate itself; {field} is a factor of it, and with {rate:g} next to nothing "
                    "is learned. Set it to 1, or to less for what should learn more slowly than the rest"
                )
            if rate > 0.1 and name not in ("prodigy", "sgd"):
                raise ValueError(f"{field} {rate:g} is too high for {name}; use 0.1 or less")
        return self

    @model_validator(mode="after")
    def _frozen_weights_are_frozen(self):
        if self.method.kind == "full" and self.memory.frozen_precision != "same":
            raise ValueError(
                f"frozen_precision is {self.memory.frozen_precision}, but full fine-tuning trains the denoiser's own "
                "weights, which cannot be stored in 8 bits. Set it to same, or train a LoRA"
            )
        if self.method.kind == "full" and self.memory.swapped_blocks:
            raise ValueError("swapped_blocks is for blocks that stay as they are, and full fine-tuning trains all of them. "
                             "Set it to 0, or train a LoRA")
        if self.memory.compile and self.memory.swapped_blocks:
            raise ValueError("compile is on, and torch cannot compile blocks that come and go. Set swapped_blocks to 0, or "
                             "switch compile off on Training Memory")
        return self

    @model_validator(mode="after")
    def _objective_fits(self):
        objective, kind = self.objective, self.base.prediction_type
        if objective.zero_terminal_snr and kind != "v_prediction":
            raise ValueError(
                f"zero_terminal_snr needs a model that predicts v, and {self.base.name!r} predicts {kind}: pure noise holds "
                "nothing that it could learn from; switch zero_terminal_snr off"
            )
        if objective.debiased and kind == "flow":
            raise ValueError(f"debiased_estimation is a weighting of epsilon and v models, and {self.base.name!r} is a flow "
                             "model; switch debiased_estimation off")
        if objective.masked and not any(image.mask for image in self.dataset.images):
            raise ValueError(
                f"masked_loss is on, but no image of the dataset {self.dataset.name!r} has a mask; put a mask beside an "
                "image (cat.png: cat-masklabel.png, cat_mask.png or masks/cat.png), use images with transparency, or "
                "switch masked_loss off"
            )
        return self

    @model_validator(mode="after")
    def _captions_that_change_are_not_cached(self):
        datasets = [self.dataset, *([self.prior.dataset] if self.prior else [])]
        varying = [dataset for dataset in datasets if any(image.variation.varies for image in dataset.images)]
        if self.memory.caption_cache == "always" and varying:
            raise ValueError(
                f"caption_cache is always, but the captions of the dataset {varying[0].name!r} change from step to step "
                "(shuffle, tag dropout or templates); encoded beforehand they would be frozen. Set caption_cache to auto, "
                "or take out Vary Captions"
            )
        return self

    @model_validator(mode="after")
    def _something_is_left_to_train(self):
        if self.validation.fraction and len({image.digest for image in self.dataset.images}) < 2:
            raise ValueError(
                f"the dataset {self.dataset.name!r} has a single image, which cannot be trained and held out for "
                "validation too; add images, or set validation_fraction to 0"
            )
        if self.validation.patience and not self.validation.fraction:
            raise ValueError(
                f"patience {self.validation.patience} waits for a better validation loss, but validation_fraction is 0; "
                "hold out a fraction of the images, for example 0.1, or set patience to 0"
            )
        return self

    @property
    def identity(self) -> str:
        """SHA-256 over everything that changes the result. Moving the files does not change it, and neither does a new
        field of a later version that is left at its default, nor a mask that is not used, nor what is kept in caches."""
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={
            "folders": True, "device": True, "base": {
                "path": True, "configs": True, "components": True, "assistant": {"path"}},
            "memory": {"caption_cache", "cache_days", "swapped_blocks", "offload_activations"}})
        if self.base.prediction_type != "flow":
            for field, usual in USUAL_PREVIEWS.items():
                if content.get("previews", {}).get(field) == usual:
                    del content["previews"][field]
        content = {name: part for name, part in content.items() if part != {}}
        content["version"], content["method"] = self.version, {"kind": self.method.kind, **content.get("method", {})}
        for dataset in [content["dataset"], *([content["prior"]["dataset"]] if self.prior else [])]:
            for image in dataset["images"]:
                del image["path"]
                image.pop("mask", None)
                if not self.objective.masked:
                    image.pop("mask_digest", None)
            dataset.pop("notes", None)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
