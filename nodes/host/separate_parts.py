"""Native MODEL, CLIP and VAE of a model whose parts lie in several files, or in a folder of diffusers': by the host's own
loaders, as its nodes Load Diffusion Model, Load CLIP and Load VAE call them."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
from torch import Tensor

from ...trainers import families
from ...trainers.errors import UserError, reason_of
from ...trainers.families.model_parts import ModelPart, ModelParts
from ...trainers.families.transformer_family import TransformerFamily
from ...trainers.spec import BaseModelSpec
from .host_families import CLIP_TYPES

DENOISERS = ("transformer", "unet")


def load_parts(base: BaseModelSpec, denoiser: Path | None = None, **options) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE). `denoiser` is a file with another denoiser, for the parts of the base. UserError for what the host
    does not load."""
    parts = ModelParts.of(base).parts
    own = next(parts[name] for name in DENOISERS if name in parts)
    text = [_tensors(part) for name, part in sorted(parts.items()) if name.startswith("text_encoder")]
    weights = _read(denoiser) if denoiser else _native(base, own)
    try:
        model = comfy.sd.load_diffusion_model_state_dict(weights, **options)
        clip = comfy.sd.load_text_encoder_state_dicts(
            text, embedding_directory=folder_paths.get_folder_paths("embeddings"), **options,
            clip_type=getattr(comfy.sd.CLIPType, CLIP_TYPES.get(base.family, "STABLE_DIFFUSION")))
        vae = comfy.sd.VAE(sd=_vae(base, parts["vae"]))
        vae.throw_exception_if_invalid()
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError) as problem:  # sizes that it does not know
        raise UserError(f"ComfyUI does not load {base.name!r}, so it cannot generate images here, because it knows no model "
                        f"of these sizes: {reason_of(problem)[:300]}") from problem
    if model is None:
        raise UserError(f"ComfyUI does not load {base.name!r}, so it cannot generate images here: it has no denoiser of "
                        "this size.")
    return model, clip, vae


def _native(base: BaseModelSpec, part: ModelPart) -> Mapping[str, Tensor]:
    """A denoiser under the names that the host knows."""
    family = families.get(base.family)
    if not part.is_folder:
        return _tensors(part)
    if isinstance(family, TransformerFamily):
        names = family.layer_names.key_map
        return {names.native_tensor(name) or name: entry.tensor() for name, entry in family.module_entries(part).items()}
    return part.tensors()


def _vae(base: BaseModelSpec, part: ModelPart) -> Mapping[str, Tensor]:
    """The host knows diffusers' names of Stable Diffusion's autoencoder alone."""
    family = families.get(base.family)
    if isinstance(family, TransformerFamily) and family.vae_kind != "vae":
        return {name: entry.tensor() for name, entry in family.vae_entries(base).items()}
    return _tensors(part)


def _tensors(part: ModelPart) -> dict[str, Tensor]:
    """As the files hold them: the host reads its own quantized layouts itself."""
    found: dict[str, Tensor] = {}
    for file in part.files:
        found |= _read(file)
    return {name.removeprefix(part.prefix): tensor for name, tensor in found.items() if name.startswith(part.prefix)}


def _read(file: Path) -> dict[str, Tensor]:
    content: Any = comfy.utils.load_torch_file(str(file), safe_load=True)
    return content
