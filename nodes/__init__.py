"""The ComfyUI side: widgets → run spec → engine → progress → outputs. One file per shelf of the Add Node menu."""
from .base_model import BaseModel, LoadDemoBase
from .dataset import LoadImageDataset
from .lora_stack import ApplyLoraStack, LoraStack
from .lora_tools import InspectLora, KeywordLoras, PromptLoras
from .prompts import PromptList
from .settings import ObjectiveSettings, OptimizerSettings, ScheduleSettings
from .train_lora import TrainLora

NODES = [
    LoadDemoBase, BaseModel, LoadImageDataset, TrainLora, OptimizerSettings, ScheduleSettings, ObjectiveSettings, PromptList,
    LoraStack, ApplyLoraStack, PromptLoras, KeywordLoras, InspectLora,
]
