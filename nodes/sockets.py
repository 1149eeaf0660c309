"""Socket types. What crosses them is immutable data: specs, names, tensors; never a live trainer."""
from dataclasses import dataclass

from comfy_api.latest import io

from ..trainers.spec import CheckpointSpec, PreviewSpec, ValidationSpec

Base = io.Custom("FINETUNE_BASE")
"""trainers.spec.BaseModelSpec"""
Dataset = io.Custom("FINETUNE_DATASET")
"""trainers.spec.DatasetSpec"""
Optimizer = io.Custom("FINETUNE_OPTIMIZER")
"""trainers.spec.OptimizerSpec, whose learning rate the train node sets"""
Schedule = io.Custom("FINETUNE_SCHEDULE")
"""trainers.spec.ScheduleSpec"""
Objective = io.Custom("FINETUNE_OBJECTIVE")
"""trainers.spec.ObjectiveSpec"""
Monitoring = io.Custom("FINETUNE_MONITORING")
"""Monitored"""
Lora = io.Custom("FINETUNE_LORA")
"""trainers.spec.LoraSpec, whose rank, alpha, targets and rates the train node sets"""
Memory = io.Custom("FINETUNE_MEMORY")
"""trainers.spec.MemorySpec"""
Embedding = io.Custom("FINETUNE_EMBEDDING")
"""trainers.artifacts.embedding.Embedding: a learned word as tensors"""
LoraModel = io.Custom("LORA_MODEL")
"""The core's: state dict of a LoRA, for Load LoRA Model and Save LoRA"""
LossMap = io.Custom("LOSS_MAP")
"""The core's: {"loss": [float, …]}, for Plot Loss Graph"""
LoraStack = io.Custom("LORA_STACK")
"""Efficiency Nodes': list of (name, model strength, text strength)"""


@dataclass(frozen=True)
class Monitored:
    """What is shown and kept while a run goes on; the prompts of the previews are on the Train node."""

    previews: PreviewSpec
    checkpoints: CheckpointSpec
    validation: ValidationSpec


class _FitsCombo(str):
    """A type name that fits any input. The host compares types with `!=`, and a V1 combo's type is its list of choices,
    which no output could equal otherwise; its validation documents this override."""

    def __ne__(self, other):
        return False

    __hash__ = str.__hash__


FileName = io.Custom("COMBO")
FileName.io_type = _FitsCombo("COMBO")
"""A file name for the drop-down of any loader: connect it to LoraLoader's lora_name."""
