"""Models of the graph as files, and what the host says of LoRAs for a model file."""
import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import folder_paths

from ...trainers import families
from ...trainers.artifacts.weights import Weights
from ...trainers.errors import UserError
from ...trainers.families.component_configs import CONFIGS, component_config, config_folder, read_config
from ...trainers.families.recognition import recognize
from ...trainers.families.transformer_family import TransformerFamily
from ...trainers.families.unet_state_dict import weights_of
from .detection import Refused
from .folders import base_path, output_folder
from .host_families import HOST_FAMILIES
from .proof import unmatched_keys, unmatched_native_keys, unmatched_tensors

CONNECTED = "(connected)"


@contextmanager
def saved_model(model, clip=None):
    """A MODEL, and a CLIP, as a checkpoint file of the host's own saver, which is gone afterwards.

    It is named after its content, so that the same model gives the same name again.
    """
    folder = output_folder() / ".cache" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".part-{os.getpid()}-{id(model)}.safetensors"
    path = None
    try:
        comfy.sd.save_checkpoint(str(temporary), model, clip, metadata={"format": "pt"})
        with open(temporary, "rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 22):
                digest.update(piece)
        path = folder / f"{digest.hexdigest()[:32]}.safetensors"
        os.replace(temporary, path)
        os.utime(path, (0, 0))
        yield path
    finally:
        for each in (temporary, path):
            if each is not None:
                each.unlink(missing_ok=True)


def lora_choices() -> list[str]:
    return folder_paths.get_filename_list("loras")


def chosen_lora(name: str) -> Path:
    """The file behind a LoRA's name. Raises UserError for what is not listed, or no .safetensors."""
    path = folder_paths.get_full_path("loras", name)  # keeps within the folders by itself
    if path is None:
        raise UserError(f"The LoRA {name!r} is not in the loras folders. Refresh the node list and choose again.")
    if not path.lower().endswith((".safetensors", ".sft")):
        raise UserError(f"{name!r} is no .safetensors file. Only those are read, because other formats can run code.")
    return Path(path)


def shard_choices() -> list[str]:
    """Indexes of sharded checkpoints, as "index/…": in the run folders and in the checkpoints folders."""
    return [f"index/{path.parent.name}/{path.name}" for path in _indexes()]


def _indexes() -> list[Path]:
    roots = [output_folder(), *map(Path, folder_paths.get_folder_paths("checkpoints"))]
    return [path for root in roots if root.is_dir() for path in sorted(root.glob("*/*.safetensors.index.json"))]


def shard_index(choice: str) -> Path:
    for path in _indexes():
        if f"index/{path.parent.name}/{path.name}" == choice:
            return path
    raise UserError(f"The index {choice!r} is not there. Refresh the node list and choose again.")


def base_files() -> list[str]:
    """Checkpoints that are one file."""
    names = folder_paths.get_filename_list("checkpoints")
    return [name for name in names if name.lower().endswith((".safetensors", ".sft"))]


def base_of(name: str, origin):
    """A checkpoint that was made of a base, as a base itself, with its sizes."""
    configs = str(config_folder(origin)) if origin.layout == "diffusers" else origin.configs
    return recognize(str(base_path(name)), name, origin.prediction_type, configs)


def unloaded_tensors(file: Path, origin) -> list[str]:
    """`unmatched_tensors` of a checkpoint that was made of a base."""
    own = [Path(origin.path)] if origin.layout == "single_file" else []
    return unmatched_tensors([file], own, origin.family, config_folder(origin))


def unloaded_keys(lora: dict, base) -> list[str]:
    """`unmatched_keys` of a LoRA for a base; none where the host's classes are not known here."""
    family = families.get(base.family)
    if isinstance(family, TransformerFamily):
        return _unloaded_of(lora, Weights(base.name, family.native_entries(base))) or []
    if base.family not in HOST_FAMILIES:
        return []
    return unmatched_keys(lora, base.family, component_config(base, "unet"), component_config(base, "text_encoder"))


def unloaded_lora_keys(lora: dict, family: str, *models: Path) -> list[str] | None:
    """`unmatched_keys` for a LoRA of the first of these models whose layout is known: a diffusers folder has its own, a
    file has the names of its family, of whatever size it is. None for families whose layout the pack does not know."""
    if isinstance(families.FAMILIES.get(family), TransformerFamily):
        return _unloaded_of(lora, weights_of(models[0])) if models else None
    if family not in HOST_FAMILIES:
        return None
    folder = next((model for model in models if model.is_dir()), None)
    if folder is not None:
        return unloaded_keys(lora, recognize(str(folder), folder.name))
    configs = [read_config(CONFIGS / family, part, family) for part in ("unet", "text_encoder")]
    return unmatched_keys(lora, family, *configs, sizes=False)


def _unloaded_of(lora: dict, model: Weights) -> list[str] | None:
    """None for a model of a size that the host does not know."""
    try:
        return unmatched_native_keys(lora, model.shapes())
    except Refused:
        return None
