"""Everything that touches ComfyUI's internals; no other folder of the pack does.

Written for ComfyUI 0.3.75 to 0.33: only what both have.
"""
import comfyui_version

OLDEST_HOST = (0, 3, 75)
if tuple(int(part) for part in comfyui_version.__version__.split(".")[:3]) < OLDEST_HOST:
    raise ImportError(f"this is ComfyUI {comfyui_version.__version__}, but 0.3.75 or newer is needed; update ComfyUI")

from . import lora_routes  # noqa: E402, F401
from .folders import DEMO_BASE, base_choices, base_path, dataset_choices, dataset_folder, output_folder, place  # noqa: E402
from .lora_files import find_row, lora_names, quick_card, read_lora, signature  # noqa: E402
from .native import load_native  # noqa: E402
from .proof import unmatched_keys  # noqa: E402
from .running import NodeProgress, follow, free_memory, require_packages, training_device  # noqa: E402
from .stack import apply_stack, inspect_lora  # noqa: E402

__all__ = [
    "DEMO_BASE", "NodeProgress", "apply_stack", "base_choices", "base_path", "dataset_choices", "dataset_folder", "find_row",
    "follow", "free_memory", "inspect_lora", "load_native", "lora_names", "output_folder", "place", "quick_card",
    "read_lora", "require_packages", "signature", "training_device", "unmatched_keys",
]
