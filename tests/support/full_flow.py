"""The released flow models in their full sizes, on the meta device: names and shapes without memory."""
from functools import lru_cache

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from finetune.trainers import families
from finetune.trainers.families.native_layout import to_native_layout


def _sd3(layers, positions, **more):
    return SD3Transformer2DModel, dict(
        sample_size=128, num_layers=layers, num_attention_heads=layers, attention_head_dim=64, joint_attention_dim=4096,
        caption_projection_dim=64 * layers, pooled_projection_dim=2048, pos_embed_max_size=positions, in_channels=16,
        out_channels=16, **more)


RELEASES = {
    "SD3 Medium": ("sd3", *_sd3(24, 192)),
    "SD3.5 Medium": ("sd3", *_sd3(24, 384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))),
    "SD3.5 Large": ("sd3", *_sd3(38, 192, qk_norm="rms_norm")),
    "FLUX.1 dev": ("flux", FluxTransformer2DModel, dict(guidance_embeds=True)),
    "FLUX.1 schnell": ("flux", FluxTransformer2DModel, dict(guidance_embeds=False)),
}
"""Family, diffusers' class and what its config says (the published configs; Flux' are the class's defaults)."""


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
    to_native_layout(model, key_map)
    return {key_map.native_tensor(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
