"""The ComfyUI side: widgets → run spec → engine → progress → outputs. One file per shelf of the Add Node menu."""
from .base_model import BaseModel, LoadDemoBase
from .class_images import ClassImages
from .dataset import LoadImageDataset
from .prompts import PromptList
from .settings import MemorySettings, ObjectiveSettings, OptimizerSettings, ScheduleSettings
from .train_hypernetwork import TrainHypernetwork
from .train_lora import TrainLora
from .watching import PreviewsAndCheckpoints

NODES = [
    LoadDemoBase, BaseModel, LoadImageDataset, TrainLora, OptimizerSettings, ScheduleSettings, ObjectiveSettings, PromptList,
    MemorySettings, PreviewsAndCheckpoints, TrainHypernetwork, ClassImages,
]
