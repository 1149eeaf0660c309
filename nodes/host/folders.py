"""The host's folders: what can be chosen there, and where finished files go."""
import os
from pathlib import Path

import folder_paths

from ...trainers.data.manifest import PICTURE_SUFFIXES
from ...trainers.errors import UserError
from ...trainers.files import place_copy

PACK = Path(__file__).resolve().parent.parent.parent
EXAMPLES = PACK / "example_datasets"
DEMO_BASE = PACK / "demo_base"

folder_paths.add_model_folder_path("loras", str(PACK / "example_loras"))

if "datasets" not in folder_paths.folder_names_and_paths:  # the host has this folder itself since 0.30
    folder_paths.add_model_folder_path("datasets", os.path.join(folder_paths.models_dir, "datasets"))


def output_folder() -> Path:
    """Where runs and caches live."""
    return Path(folder_paths.get_output_directory()) / "finetune"


def saved_picture(path: Path) -> dict[str, str]:
    """How the frontend is told of a picture in the output folder."""
    subfolder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}


def artifact_folder(kind: str) -> Path:
    """Where finished files go, by kind ("lora", "checkpoint", "embedding", "hypernetwork"): `output/loras` and
    `output/checkpoints`, which the host puts on its search paths when it starts; for the others the models' folders."""
    if kind in ("lora", "checkpoint"):
        return Path(folder_paths.get_output_directory()) / f"{kind}s"
    return Path(folder_paths.get_folder_paths(f"{kind}s")[0])


def place(kind: str, file: Path, stem: str) -> str:
    """Copy a finished file to where every loader finds it, over nothing; returns its name in the loaders' lists.

    Checkpoints are linked rather than copied where the disk can: they are gigabytes.
    """
    folder = artifact_folder(kind)
    others = [Path(other) for other in folder_paths.get_folder_paths(f"{kind}s")]
    if kind == "embedding":  # the host looks for a prompt's word in all sub-folders, in no certain order
        others += [below for other in others for below in other.rglob("*") if below.is_dir()]
    return place_copy(file, folder, stem, [other for other in others if other != folder], kind == "checkpoint").name


def _dataset_roots() -> dict[str, list[Path]]:
    return {
        "examples": [EXAMPLES],
        "input": [Path(folder_paths.get_input_directory())],
        "datasets": [Path(folder) for folder in folder_paths.get_folder_paths("datasets")],
    }


def dataset_choices() -> list[str]:
    """Folders with pictures, as "input/name": in the host's input and datasets folders and in the pack's examples."""
    found = []
    for root, folders in _dataset_roots().items():
        for folder in folders:
            if folder.is_dir():
                found += [f"{root}/{entry.name}" for entry in sorted(folder.iterdir()) if _has_pictures(entry)]
    return found


def _has_pictures(folder: Path, deeper: bool = True) -> bool:
    """Whether pictures lie in a folder, or in a folder directly inside it."""
    try:
        with os.scandir(folder) as entries:
            entries = list(entries)
        return any(os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES for entry in entries) or deeper and any(
            entry.is_dir() and _has_pictures(Path(entry.path), False) for entry in entries)
    except OSError:
        return False


def dataset_folder(choice: str) -> Path:
    """The folder behind a choice. A workflow may name anything, so it is looked up inside the allowed folders only."""
    root, _, name = choice.partition("/")
    for folder in _dataset_roots().get(root, []):
        if _is_plain_name(name) and (folder / name).is_dir():
            return folder / name
    raise UserError(f"The dataset folder {choice!r} is not there. Put a folder of pictures into ComfyUI's input folder "
                    "or models/datasets, refresh the node list, and choose it.")


def own_dataset_folder(picture: Path) -> Path:
    """The dataset folder of a person's own that a picture lies in: a folder in the input folder or in models/datasets.
    Raises UserError for pictures elsewhere, and for those behind a link that leads out of the dataset folder."""
    place = Path(os.path.normpath(picture))
    for root in (root for kind in ("input", "datasets") for root in _dataset_roots()[kind]):
        for name in (Path(os.path.normpath(root)), root.resolve()):
            if place.is_relative_to(name) and len(parts := place.relative_to(name).parts) > 1:
                folder = name / parts[0]
                if place.parent.resolve().is_relative_to(folder.resolve()):
                    return folder
    if place.is_relative_to(EXAMPLES):
        raise UserError("These pictures came with the pack, and its examples stay as they are. Copy the folder "
                        f"{place.parent.name!r} into ComfyUI's input folder, refresh the node list, and choose it there.")
    raise UserError(f"The picture {picture.name!r} is not in a folder of ComfyUI's input folder or of models/datasets, so "
                    "no caption is written beside it. Put the pictures into a folder there, and choose that in Load Image "
                    "Dataset.")


def _is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder. Links that people put there themselves may lead elsewhere."""
    return name not in ("", ".", "..") and Path(name).name == name


def base_choices() -> list[str]:
    """Checkpoints, then diffusers folders as "diffusers/name"."""
    folders = []
    for root in folder_paths.get_folder_paths("diffusers"):
        if os.path.isdir(root):
            folders += [f"diffusers/{path.parent.name}" for path in sorted(Path(root).glob("*/model_index.json"))]
    return folder_paths.get_filename_list("checkpoints") + folders


def base_path(choice: str) -> Path:
    """The checkpoint file or diffusers folder behind a choice."""
    if choice.startswith("diffusers/"):
        for root in folder_paths.get_folder_paths("diffusers"):
            name = choice.removeprefix("diffusers/")
            if _is_plain_name(name) and (Path(root) / name / "model_index.json").is_file():
                return Path(root) / name
    else:
        path = folder_paths.get_full_path("checkpoints", choice)  # keeps within the folders by itself
        if path:
            return Path(path)
    raise UserError(f"The base model {choice!r} is not there. Put the checkpoint into models/checkpoints, or a "
                    "diffusers folder into models/diffusers, refresh the node list, and choose it.")
