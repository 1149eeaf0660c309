"""Folders of caption models: models/captioners, and models/LLM, where other packs put theirs."""
import os
from pathlib import Path

import folder_paths

from ...trainers.captioning.model_folders import kind_of, where_to_put
from ...trainers.errors import UserError

NONE_FOUND = "(none found)"

folder_paths.add_model_folder_path("captioners", os.path.join(folder_paths.models_dir, "captioners"))


def _roots() -> dict[str, list[Path]]:
    registered, usual = folder_paths.folder_names_and_paths.get("LLM"), os.path.join(folder_paths.models_dir, "LLM")
    others = dict.fromkeys([*(registered[0] if registered else ()), usual])
    return {"captioners": [Path(root) for root in folder_paths.get_folder_paths("captioners")],
            "LLM": [Path(root) for root in others]}


def _folders_in(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def captioner_choices(kind: str) -> list[str]:
    """Models of a kind as "captioners/name" or "captioners/author/name"; never empty, so that a workflow can be opened."""
    found = []
    for name, roots in _roots().items():
        for root in roots:
            for folder in _folders_in(root):
                for each in [folder] if kind_of(folder) else _folders_in(folder):
                    if kind_of(each) == kind:
                        found.append(f"{name}/{each.relative_to(root).as_posix()}")
    return list(dict.fromkeys(found)) or [NONE_FOUND]


def captioner_folder(choice: str, kind: str) -> Path:
    """The folder behind a choice. A workflow may name anything, so it is looked up inside the allowed folders only."""
    name, *parts = choice.split("/")
    plain = 1 <= len(parts) <= 2 and all(part not in ("", ".", "..") and Path(part).name == part for part in parts)
    for root in _roots().get(name, []) if plain else []:
        if root.joinpath(*parts).is_dir():
            return root.joinpath(*parts)
    missing = "There is no model for this node yet." if choice == NONE_FOUND else f"The model {choice!r} is not there."
    raise UserError(f"{missing} {where_to_put(kind)}")
