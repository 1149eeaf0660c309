"""Which weight files of a diffusers folder are loaded, where several versions lie beside each other.

This decides for everybody: for loading, for what an extraction compares, and for the fingerprint of a base.
"""
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from .component_configs import read_object

DIFFUSION_STEM, TEXT_STEM = "diffusion_pytorch_model", "model"
"""Names of weight files of UNets and VAEs, and of text encoders."""
LONGEST_INDEX = 50_000_000
"""Bytes of an index of shards."""


class WeightFiles(NamedTuple):
    """`variant` is what diffusers calls the part between name and ending ("fp16"); None for plain names. `index` is the
    index of shards, if they are several."""

    files: list[Path]
    variant: str | None
    index: Path | None


def weight_files(folder: Path, component: str, title: str) -> WeightFiles:
    """The files of a component of the model in `folder`: plain names before variants, fp16 before other variants.

    Between one file and an index of shards the libraries decide, and not alike: diffusers takes the shards, transformers
    the one file. Raises UserError when there is no .safetensors file, or a shard is missing.
    """
    place, is_text = folder / component, component.startswith("text_encoder")
    stem = TEXT_STEM if is_text else DIFFUSION_STEM
    for variant in _variants(place, stem):
        part = f".{variant}" if variant else ""
        one, index = place / f"{stem}{part}.safetensors", place / f"{stem}.safetensors.index{part}.json"
        if one.is_file() and (is_text or not index.is_file()):
            return WeightFiles([one], variant, None)
        if index.is_file():
            return WeightFiles(_shards(index, title, component), variant, index)
    if any(place.glob("*.bin")) or any(place.glob("*.ckpt")):
        raise UserError(f"{title!r} holds its {component} as .bin only. Only .safetensors files are read, because other "
                        f"formats can run code. Download {component}/{stem}.safetensors of the same model.")
    raise UserError(f"{title!r} holds no {component}/{stem}.safetensors. Download the model again.")


def _variants(place: Path, stem: str) -> list[str | None]:
    names = {file.name for file in place.glob(f"{stem}.*")}
    found = {name.removeprefix(f"{stem}.").removesuffix(".safetensors") for name in names if name.endswith(".safetensors")}
    found |= {name.removeprefix(f"{stem}.safetensors.index.").removesuffix(".json") for name in names
              if name.startswith(f"{stem}.safetensors.index.") and name.endswith(".json")}
    others = sorted(each for each in found if each.isidentifier() and each not in ("safetensors", "json", "fp16"))
    return [None, "fp16", *others]


def _shards(index: Path, title: str, component: str) -> list[Path]:
    content = read_object(index, LONGEST_INDEX)
    places = content.get("weight_map") if content else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{title!r} is damaged: {component}/{index.name} is no index of shards. Download the model again.")
    files = [index.parent / name for name in sorted(set(places.values()))]
    missing = [file.name for file in files
               if file.parent != index.parent or file.suffix != ".safetensors" or not file.is_file()]
    if missing:
        raise UserError(f"{title!r} is incomplete: {component}/{missing[0][:200]} is missing, one of {len(files)} files. "
                        "Download the model again.")
    return files
