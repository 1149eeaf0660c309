"""The released flow models in their full sizes, on the meta device: names and shapes without memory."""
from functools import lru_cache

import torch
from finetune.trainers import families

from .flow_models import FLOW_MODELS

RELEASES = {release: (each.name, *model) for each in FLOW_MODELS.values() for release, model in each.releases.items()}
"""Family, diffusers' class and what its config says (the published configs)."""


@lru_cache(maxsize=1)
def diffusers_model(release):
    _, model, config = RELEASES[release]
    with torch.device("meta"):
        return model(**config)


def diffusers_layers(release):
    """Name → shape of the weight of every layer that diffusers has."""
    return {name: tuple(module.weight.shape) for name, module in diffusers_model(release).named_modules()
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}


@lru_cache(maxsize=1)
def native_shapes(release):
    """Name → shape of every tensor of the original file."""
    family, model, config = RELEASES[release]
    with torch.device("meta"):
        return shapes_of(family, model(**config))


def shapes_of(family, model):
    """The same of diffusers' model on the meta device, which becomes another."""
    key_map = families.get(family).layer_names.key_map
    families.get(family).to_native_layout(model)
    return {key_map.native_tensor(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
