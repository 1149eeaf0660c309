"""The ComfyUI side: widgets → run spec → engine → progress → outputs. One file per shelf of the Add Node menu."""
from .base_model.assistant_lora import AssistantLora
from .base_model.base_model import BaseModel, LoadBase, LoadDemoBase
from .base_model.base_model_from_parts import BaseModelFromParts
from .captions.captioners import CaptionBlip, CaptionBlip2, CaptionFlorence2, CaptionGit, CaptionVisionLanguage, TagImages
from .captions.edit_captions import EditCaptions, EditTags, ReplaceInCaptions, TriggerWord, UndoWriteCaptions, WriteCaptions
from .captions.run_captioner import CaptionFromNames
from .dataset.load_dataset import LoadImageDataset
from .dataset.make_class_images import ClassImages
from .dataset.make_datasets import CombineDatasets, DatasetFromImages, SplitDataset
from .dataset.report_dataset import DatasetReport
from .dataset.vary_dataset import AugmentImages, VaryCaptions
from .embeddings.embedding_files import LoadEmbeddingLibrary, MergeEmbeddings, SaveEmbeddingLibrary
from .evaluate.prompt_list import PromptList
from .lora_stack.find_loras import InspectLora, KeywordLoras, PromptLoras
from .lora_stack.lora_stack import ApplyLoraStack, LoraStack
from .lora_tools.change_checkpoints import BakeLoras, ExportOnnx, ShardCheckpoint
from .lora_tools.change_loras import ConvertLora, EditLoraMetadata, MergeLoras, ResizeLora
from .lora_tools.extract_lora import ExtractLora
from .settings.lora_settings import LoraSettings
from .settings.previews_and_checkpoints import PreviewsAndCheckpoints
from .settings.training_settings import MemorySettings, ObjectiveSettings, OptimizerSettings, ScheduleSettings
from .train.train_dreambooth import TrainDreamBooth
from .train.train_hypernetwork import TrainHypernetwork
from .train.train_lora import TrainLora
from .train.train_pivotal import TrainPivotal
from .train.train_textual_inversion import TrainTextualInversion

NODES = [
    LoadBase, LoadDemoBase, BaseModel, BaseModelFromParts, AssistantLora,
    LoadImageDataset, DatasetFromImages, CombineDatasets, SplitDataset, DatasetReport, VaryCaptions, AugmentImages,
    ClassImages,
    CaptionBlip, CaptionBlip2, CaptionGit, CaptionFlorence2, CaptionVisionLanguage, TagImages, CaptionFromNames,
    TriggerWord, ReplaceInCaptions, EditTags, EditCaptions, WriteCaptions, UndoWriteCaptions,
    TrainLora, TrainDreamBooth, TrainTextualInversion, TrainPivotal, TrainHypernetwork,
    LoraSettings, OptimizerSettings, ScheduleSettings, ObjectiveSettings, MemorySettings, PreviewsAndCheckpoints,
    PromptList,
    LoraStack, ApplyLoraStack, PromptLoras, KeywordLoras, InspectLora,
    ExtractLora, MergeLoras, ResizeLora, ConvertLora, EditLoraMetadata, BakeLoras, ShardCheckpoint, ExportOnnx,
    MergeEmbeddings, SaveEmbeddingLibrary, LoadEmbeddingLibrary,
]
