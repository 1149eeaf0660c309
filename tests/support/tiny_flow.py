"""Tiny real models of the flow families, as diffusers folders and as all-in-one files in the original layout."""
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from finetune.trainers import families
from finetune.trainers.families.recognition import recognize
from safetensors.torch import save_file

from .flow_models import FLOW_MODELS

FAMILIES = tuple(FLOW_MODELS)
WITH_TEXT = tuple(family for family in FAMILIES if "text_encoder" in families.get(family).capabilities)
"""Those whose text encoders learn."""


def make_transformer(family: str, plain: bool = False) -> torch.nn.Module:
    torch.manual_seed(1)
    return FLOW_MODELS[family].transformer(plain)


def make_folder(family: str, folder: Path, plain: bool = False) -> Path:
    """A diffusers folder of random weights. Norms' weights differ from 1, so that a lost one shows."""
    made, transformer = FLOW_MODELS[family], make_transformer(family, plain)
    torch.manual_seed(2)
    vae = made.vae()
    torch.manual_seed(3)
    text = made.text()
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif any(each in name for each in made.last):
                parameter.copy_(0.05 * torch.randn_like(parameter))
    made.pipeline(transformer=transformer, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
                  **text).save_pretrained(folder)
    return folder


def single_file_weights(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """The model of a diffusers folder as one state dict in the original layout."""
    kind, base = families.get(family), recognize(str(folder), "tiny")
    entries = {kind.vae_prefix + name: entry for name, entry in kind.vae_entries(base).items()} | kind.native_entries(base)
    return {name: entry.tensor().clone().contiguous() for name, entry in entries.items()}


def make_single_file(family: str, folder: Path, path: Path, dtype=torch.float32) -> Path:
    weights = single_file_weights(family, folder)
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path)
    return path
