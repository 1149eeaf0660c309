"""Everything that touches ComfyUI's internals; no other folder of the pack does.

Written for ComfyUI 0.3.75 to 0.33: only what both have.
"""
import comfyui_version

OLDEST_HOST = (0, 3, 75)
if tuple(int(part) for part in comfyui_version.__version__.split(".")[:3]) < OLDEST_HOST:
    raise ImportError(f"this is ComfyUI {comfyui_version.__version__}, but 0.3.75 or newer is needed; update ComfyUI")

from .folders import DEMO_BASE, base_choices, base_path, dataset_choices, dataset_folder, output_folder, place  # noqa: E402
from .native import load_checkpoint, load_native  # noqa: E402
from .proof import unmatched_keys, unmatched_tensors  # noqa: E402
from .running import NodeProgress, blocked, follow, free_memory, require_packages, training_device  # noqa: E402

__all__ = [
    "DEMO_BASE", "NodeProgress", "base_choices", "base_path", "blocked", "dataset_choices", "dataset_folder", "follow",
    "free_memory", "load_checkpoint", "load_native", "output_folder", "place", "require_packages", "training_device",
    "unmatched_keys", "unmatched_tensors",
]
