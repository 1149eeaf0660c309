"""The host's embeddings folders: what lies there, how prompts call it, and libraries of names beside it."""
from pathlib import Path

import comfy.sd1_clip
import folder_paths
from safetensors.torch import load_file

from ...trainers.errors import UserError
from ...trainers.files import place_copy
from .folders import artifact_folder
from .host_families import HOST_FAMILIES

LIBRARIES = "libraries"
"""Folder beside the embeddings, so that words and their library can be copied together."""


def embedding_choices() -> list[str]:
    return folder_paths.get_filename_list("embeddings")


def embedding_path(choice: str) -> Path | None:
    """The file behind a name; None when it is not there. The host keeps within its folders by itself."""
    path = folder_paths.get_full_path("embeddings", choice)
    return Path(path) if path and path.lower().endswith((".safetensors", ".pt", ".bin")) else None


def embedding_prompt(name: str) -> str:
    """How a prompt calls a file. The host tries `.safetensors` first, so other endings are written out."""
    return f"embedding:{name.removesuffix('.safetensors')}".replace("\\", "/")


def _library_folders() -> list[Path]:
    return [Path(folder) / LIBRARIES for folder in folder_paths.get_folder_paths("embeddings")]


def library_choices() -> list[str]:
    return sorted({file.stem for folder in _library_folders() for file in folder.glob("*.json") if file.is_file()})


def library_path(name: str) -> Path:
    """The file of a library. A workflow may name anything, so it is compared with what is there."""
    if name in library_choices():
        return next(path for folder in _library_folders() if (path := folder / f"{name}.json").is_file())
    raise UserError(f"The embedding library {name!r} is not there. Make one with Save Embedding Library, refresh the node "
                    "list, and choose it.")


def place_library(file: Path, name: str) -> str:
    """Copy a library beside the embeddings, over nothing; returns the name it is listed under."""
    others = [folder for folder in _library_folders() if folder != artifact_folder("embedding") / LIBRARIES]
    return place_copy(file, artifact_folder("embedding") / LIBRARIES, name, others).stem


def unloaded_vectors(file: Path, family: str) -> list[str]:
    """Names of an embedding's tensors that the host's own loader would not read as they are in the file, asked for what
    the family's tokenizers ask for."""
    unloaded = []
    if family not in HOST_FAMILIES:
        return unloaded
    for name, tensor in load_file(file).items():
        wanted = HOST_FAMILIES[family].embedding or name
        loaded = comfy.sd1_clip.load_embed(file.name, str(file.parent), tensor.shape[1], wanted)
        if loaded is None or loaded.dtype != tensor.dtype or not loaded.equal(tensor):
            unloaded.append(name)
    return unloaded
