"""A model's weights under the names of its original single file, whatever it lies in; nothing is read before it is used."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..artifacts.layer_names.unet import original_unet_name
from ..artifacts.ldm_layout import open_clip_parts
from ..artifacts.tensor_files import Entry
from ..artifacts.weights import Weights
from ..errors import UserError
from ..spec import BaseModelSpec
from . import get
from .checkpoint_writing import plain
from .component_configs import component_config
from .latent_diffusion import LatentDiffusion
from .model_parts import ModelParts
from .recognition import recognize
from .sizes import UNET, unet_shape
from .transformer_family import TransformerFamily


def weights_of(path: Path, title: str = "") -> Weights:
    """Denoiser and text encoders of a .safetensors file or a diffusers folder. Raises UserError for anything else."""
    title = title or path.name
    if path.is_file():
        if path.suffix.lower() not in (".safetensors", ".sft"):
            raise UserError(f"{title!r} is a {path.suffix or 'nameless'} file. Only .safetensors files are read, because "
                            "other formats can run code; convert it first.")
        return replace(Weights.of_file(path), title=title)
    base = recognize(str(path), title)
    family = get(base.family)
    if isinstance(family, TransformerFamily):
        return Weights(title, family.native_entries(base))
    if not isinstance(family, LatentDiffusion):
        raise UserError(f"{title!r} is a {family.title} model, whose folders are not read here. Choose a single "
                        ".safetensors file.")
    entries = {UNET + original_unet_name(name, *unet_shape(component_config(base, "unet"))): entry
               for name, entry in _component(base, "unet").items()}
    for component, prefix in family.text_places.values():
        entries |= _text(_component(base, component), prefix)
    return Weights(title, entries)


def _component(base: BaseModelSpec, component: str) -> dict[str, Entry]:
    return ModelParts.of(base)[component].entries()


def _text(entries: Mapping[str, Entry], prefix: str) -> dict[str, Entry]:
    named = {f"text_model.{plain(name)}": entry for name, entry in entries.items() if name != "text_projection.weight"}
    if prefix.endswith(".transformer."):
        return {prefix + name: entry for name, entry in named.items()}
    pieces = open_clip_parts(name for name in named if not name.endswith("position_ids"))
    return {prefix + name: _joined(prefix + name, [named[part] for part in parts]) for name, parts in pieces.items()}


def _joined(name: str, parts: Sequence[Entry]) -> Entry:
    first = parts[0]
    if len(parts) == 1:
        return first
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return Entry(name, first.dtype, shape, lambda: [part.tensor() for part in parts])
