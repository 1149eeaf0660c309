"""Everything that touches ComfyUI's internals; no other folder of the pack does.

Written for ComfyUI 0.3.75 to 0.33: only what both have.
"""
import comfyui_version

OLDEST_HOST = (0, 3, 75)
if tuple(int(part) for part in comfyui_version.__version__.split(".")[:3]) < OLDEST_HOST:
    raise ImportError(f"this is ComfyUI {comfyui_version.__version__}, but 0.3.75 or newer is needed; update ComfyUI")

from . import lora_routes  # noqa: E402, F401
from .captioner_folders import captioner_choices, captioner_folder  # noqa: E402
from .detection import host_refusal  # noqa: E402
from .embeddings import (  # noqa: E402
    embedding_choices,
    embedding_path,
    embedding_prompt,
    library_choices,
    library_path,
    place_library,
    unloaded_vectors,
)
from .folders import (  # noqa: E402
    DEMO_BASE,
    DEMO_FLOW_BASE,
    PartFolder,
    artifact_folder,
    base_choices,
    base_path,
    dataset_choices,
    dataset_folder,
    host_folders,
    output_folder,
    own_dataset_folder,
    part_choices,
    part_files,
    part_path,
    run_folders,
    saved_image,
)
from .lora_files import find_row, lora_names, quick_card, read_lora, signature  # noqa: E402
from .native import (  # noqa: E402
    core_refusal,
    empty_latent,
    load_base,
    load_checkpoint,
    load_native,
    load_trained,
)
from .placing import losses_of_files, place, place_meanwhile  # noqa: E402
from .proof import unloaded_widths, unmatched_keys, unmatched_tensors  # noqa: E402
from .running import NodeProgress, blocked, require_packages, training_device  # noqa: E402
from .stack import apply_stack, inspect_lora  # noqa: E402
from .weights import (  # noqa: E402
    CONNECTED,
    base_files,
    base_of,
    chosen_lora,
    lora_choices,
    saved_model,
    shard_choices,
    shard_index,
    unloaded_keys,
    unloaded_lora_keys,
    unloaded_tensors,
)
from .working import Display, LoadCheck, Made, R, make_files, work  # noqa: E402

__all__ = [
    "apply_stack", "artifact_folder", "base_choices", "base_files", "base_of", "base_path", "blocked", "captioner_choices",
    "captioner_folder", "chosen_lora", "CONNECTED", "core_refusal", "dataset_choices", "dataset_folder", "DEMO_BASE",
    "DEMO_FLOW_BASE", "Display", "embedding_choices", "embedding_path", "embedding_prompt", "empty_latent", "find_row",
    "host_folders", "host_refusal", "inspect_lora", "library_choices", "library_path", "load_base", "load_checkpoint",
    "load_native", "load_trained", "LoadCheck", "lora_choices", "lora_names", "losses_of_files", "Made", "make_files",
    "NodeProgress", "output_folder", "own_dataset_folder", "part_choices", "part_files", "part_path", "PartFolder", "place",
    "place_library", "place_meanwhile", "quick_card", "R", "read_lora", "require_packages", "run_folders", "saved_image",
    "saved_model", "shard_choices", "shard_index", "signature", "training_device", "unloaded_keys", "unloaded_lora_keys",
    "unloaded_tensors", "unloaded_vectors", "unloaded_widths", "unmatched_keys", "unmatched_tensors", "work",
]
