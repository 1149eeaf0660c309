"""The host's folders: what can be chosen there, and where finished files go."""
import os
from pathlib import Path
from typing import Literal

import folder_paths

from ...trainers.data.projects import class_folder
from ...trainers.data.sources import IMAGE_SUFFIXES, inside, is_text
from ...trainers.errors import UserError
from ...trainers.spec import FolderSpec

PACK = Path(__file__).resolve().parent.parent.parent
EXAMPLES = PACK / "example_datasets"
DEEPEST, MOST_LOOKED_AT = 4, 20_000
"""How many folders down, and at how many files, images are looked for before a folder is offered: lists must be quick."""
DEMO_BASE = PACK / "demo_base"
DEMO_FLOW_BASE = PACK / "demo_flow_base" / "demo_flow_base.safetensors"

folder_paths.add_model_folder_path("loras", str(PACK / "example_loras"))

if "datasets" not in folder_paths.folder_names_and_paths:  # the host has this folder itself since 0.30
    folder_paths.add_model_folder_path("datasets", os.path.join(folder_paths.models_dir, "datasets"))


def output_folder() -> Path:
    """Where runs and caches live."""
    return Path(folder_paths.get_output_directory()) / "finetune"


def run_folders() -> FolderSpec:
    """Where a spec's run and its caches go."""
    return FolderSpec(runs=str(output_folder()), caches=str(output_folder() / ".cache"))


def saved_image(path: Path) -> dict[str, str]:
    """How the frontend is told of an image in the output folder."""
    subfolder = path.parent.relative_to(folder_paths.get_output_directory()).as_posix()
    return {"filename": path.name, "subfolder": subfolder, "type": "output"}


def artifact_folder(kind: str) -> Path:
    """Where finished files go, by kind ("lora", "checkpoint", "diffusion_model", "embedding", "hypernetwork"): for the first
    three folders of `output`, which the host puts on its search paths when it starts; for the others the models' folders."""
    if kind in ("lora", "checkpoint", "diffusion_model"):
        return Path(folder_paths.get_output_directory()) / f"{kind}s"
    return Path(folder_paths.get_folder_paths(f"{kind}s")[0])


def _dataset_roots() -> dict[str, list[Path]]:
    return {
        "examples": [EXAMPLES],
        "input": [Path(folder_paths.get_input_directory())],
        "datasets": [Path(folder) for folder in folder_paths.get_folder_paths("datasets")],
    }


def host_folders() -> list[Path]:
    """The folders that the host's settings and the pack name for images: links out of a dataset may lead into these."""
    return [*(folder for folders in _dataset_roots().values() for folder in folders),
            Path(folder_paths.get_output_directory())]


def dataset_choices() -> list[str]:
    """Folders with images, as "input/name": in the host's input and datasets folders and in the pack's examples; behind a
    project of kohya's trainers also its regularization images, as "input/name/reg"."""
    found = []
    for root, folders in _dataset_roots().items():
        for folder in folders:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if is_text(path.name) and _has_images(path):
                    classes = class_folder(path)
                    found += [f"{root}/{path.name}", *[f"{root}/{path.name}/{classes}"][:classes is not None]]
    return found


def _has_images(folder: Path) -> bool:
    """Whether images lie in a folder or at most DEEPEST folders down in it, as far as that is quickly said."""
    waiting, looked_at = [(folder, 0)], 0
    for place, depth in waiting:  # grows while it is walked
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    looked_at += 1
                    if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                        return True
                    if depth < DEEPEST and not entry.name.startswith(".") and entry.is_dir():
                        waiting.append((Path(entry.path), depth + 1))
        except OSError:
            continue
        if looked_at > MOST_LOOKED_AT:
            return False
    return False


def dataset_folder(choice: str) -> Path:
    """The folder behind a choice. A workflow may name anything, so it is looked up inside the allowed folders only; a link
    may lead from one of the host's folders into another, and nowhere else."""
    root, *names = choice.split("/")
    for folder in _dataset_roots().get(root, []):
        path = folder.joinpath(*names)
        if names and all(map(_is_plain_name, names)) and path.is_dir():
            if any(inside(os.path.realpath(path), os.path.realpath(home)) for home in host_folders()):
                return path
            raise UserError(f"The dataset folder {choice!r} is a link out of ComfyUI's folders. Name the folder that it "
                            "leads to, or the one around it, under datasets in extra_model_paths.yaml, and start ComfyUI "
                            "again.")
    raise UserError(f"The dataset folder {choice!r} is not there. Put a folder of images into ComfyUI's input folder "
                    "or models/datasets, refresh the node list, and choose it.")


def own_dataset_folder(image: Path) -> Path:
    """The dataset folder of a person's own that an image lies in: a folder in the input folder or in models/datasets.
    Raises UserError for images elsewhere, and for those behind a link that leads out of the dataset folder."""
    place = Path(os.path.normpath(image))
    for root in (root for kind in ("input", "datasets") for root in _dataset_roots()[kind]):
        for name in (Path(os.path.normpath(root)), root.resolve()):
            if place.is_relative_to(name) and len(parts := place.relative_to(name).parts) > 1:
                folder = name / parts[0]
                if place.parent.resolve().is_relative_to(folder.resolve()):
                    return folder
    if place.is_relative_to(EXAMPLES):
        raise UserError("These images came with the pack, and its examples stay as they are. Copy the folder "
                        f"{place.parent.name!r} into ComfyUI's input folder, refresh the node list, and choose it there.")
    raise UserError(f"The image {image.name!r} is not in a folder of ComfyUI's input folder or of models/datasets, so "
                    "no caption is written beside it. Put the images into a folder there, and choose that in Load Image "
                    "Dataset.")


def _is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder, links aside."""
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


PartFolder = Literal["diffusion_models", "text_encoders", "vae"]
"""Folders of the host for the parts of a model: the first is `unet` too, the second `clip`."""


def part_choices(folder: PartFolder) -> list[str]:
    """Files that may be a part of a model."""
    return folder_paths.get_filename_list(folder)


def part_files(folder: PartFolder) -> dict[str, Path]:
    """The same with their paths, without links that lead nowhere."""
    paths = {name: folder_paths.get_full_path(folder, name) for name in part_choices(folder)}
    return {name: Path(path) for name, path in paths.items() if path}


def part_path(folder: PartFolder, choice: str) -> Path:
    """The file behind a choice, looked up inside the folder."""
    path = folder_paths.get_full_path(folder, choice)  # keeps within the folders by itself
    if path is None:
        raise UserError(f"{choice!r} is not there. Put it into models/{folder}, refresh the node list, and choose it.")
    return Path(path)
