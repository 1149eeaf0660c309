"""The ComfyUI side: widgets → run spec → engine → progress → outputs. One file per shelf of the Add Node menu."""
from .base_model import BaseModel, LoadBase, LoadDemoBase
from .captioners import (
    CaptionBlip,
    CaptionBlip2,
    CaptionFlorence2,
    CaptionGit,
    CaptionVisionLanguage,
    TagPictures,
)
from .captioning import CaptionFromNames
from .captions import EditCaptions, EditTags, ReplaceInCaptions, TriggerWord, UndoWriteCaptions, WriteCaptions
from .checkpoint_files import BakeLoras, ExportOnnx, ShardCheckpoint
from .class_images import ClassImages
from .dataset import LoadImageDataset
from .dataset_report import DatasetReport
from .dataset_sources import CombineDatasets, DatasetFromImages, SplitDataset
from .dataset_variation import AugmentPictures, VaryCaptions
from .embeddings import LoadEmbeddingLibrary, MergeEmbeddings, SaveEmbeddingLibrary
from .extract import ExtractLora
from .lora_files import ConvertLora, EditLoraMetadata, MergeLoras, ResizeLora
from .lora_stack import ApplyLoraStack, LoraStack
from .lora_tools import InspectLora, KeywordLoras, PromptLoras
from .prompts import PromptList
from .settings import MemorySettings, ObjectiveSettings, OptimizerSettings, ScheduleSettings
from .train_dreambooth import TrainDreamBooth
from .train_hypernetwork import TrainHypernetwork
from .train_lora import TrainLora
from .train_pivotal import TrainPivotal
from .train_textual_inversion import TrainTextualInversion
from .watching import PreviewsAndCheckpoints

NODES = [
    LoadBase, LoadDemoBase, BaseModel, LoadImageDataset, TrainLora, OptimizerSettings, ScheduleSettings, ObjectiveSettings,
    PromptList, MemorySettings, PreviewsAndCheckpoints, TrainHypernetwork, ClassImages, TrainTextualInversion, TrainPivotal,
    ExtractLora, MergeLoras, ResizeLora, ConvertLora, EditLoraMetadata, BakeLoras, ShardCheckpoint, ExportOnnx,
    MergeEmbeddings, SaveEmbeddingLibrary, LoadEmbeddingLibrary, TrainDreamBooth,
    LoraStack, ApplyLoraStack, PromptLoras, KeywordLoras, InspectLora,
    TriggerWord, ReplaceInCaptions, EditTags, EditCaptions, WriteCaptions, UndoWriteCaptions,
    DatasetReport,
    CaptionBlip, CaptionBlip2, CaptionGit, CaptionFlorence2, CaptionVisionLanguage, TagPictures, CaptionFromNames,
    VaryCaptions, AugmentPictures, DatasetFromImages, CombineDatasets, SplitDataset,
]
