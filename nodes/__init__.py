"""The ComfyUI side: widgets → run spec → engine → progress → outputs. One file per shelf of the Add Node menu."""
from .base_model import BaseModel, LoadDemoBase
from .dataset import LoadImageDataset
from .prompts import PromptList
from .settings import ObjectiveSettings, OptimizerSettings, ScheduleSettings
from .train_dreambooth import TrainDreamBooth
from .train_lora import TrainLora

NODES = [
    LoadDemoBase, BaseModel, LoadImageDataset, TrainLora, OptimizerSettings, ScheduleSettings, ObjectiveSettings, PromptList,
    TrainDreamBooth,
]
