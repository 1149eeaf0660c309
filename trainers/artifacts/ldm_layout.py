"""VAE and text encoders of the original single-file layout (CompVis latent diffusion, Stability's SDXL), from diffusers'.

Checkpoints in the original layout are what every program loads. Source of the facts: the original repositories' module
trees. Tensors are the same, apart from those that `*_tensors` functions reshape. The UNet's names: `layer_names.unet`.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .layer_names.text import OPEN_CLIP_PARTS

VAE_PARTS = (
    ("conv_shortcut", "nin_shortcut"), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"),
    ("to_k", "k"), ("to_v", "v"), ("conv_norm_out", "norm_out"), (".resnets.", ".block."),
    ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("encoder.down_blocks", "encoder.down"),
)
PROJECTION = "text_projection.weight"
"""Transformers' name of the weight that OpenCLIP keeps transposed."""


@dataclass(frozen=True)
class Original:
    """What the original file calls a tensor, and the shape that it has there: of the same numbers in the same order."""

    name: str
    shape: tuple[int, ...]


def original_vae_places(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Original]:
    """The place in the original file of every tensor of diffusers' AutoencoderKL or AutoencoderKLFlux2, by its name there.

    The middle block's attention was made of 1×1 convolutions: its weights get two trailing dimensions.
    """
    blocks = 1 + max(int(match[1]) for name in shapes if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name)))
    places = {}
    for name, shape in shapes.items():
        own = name
        for diffusers, original in VAE_PARTS:
            own = own.replace(diffusers, original)
        own = re.sub(r"decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{blocks - 1 - int(match[1])}", own)
        kernel = (1, 1) if ".attn_1." in own and own.endswith("weight") and len(shape) == 2 else ()
        places[name] = Original(own, (*shape, *kernel))
    return places


def original_vae_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers AutoencoderKL's weights under their original names, without the `first_stage_model.` prefix."""
    places = original_vae_places({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return {place.name: weights[name].reshape(place.shape) for name, place in places.items()}


def open_clip_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers CLIP text model's weights in OpenCLIP's layout: q, k and v fused, the projection transposed.

    Keys of `weights` carry the `text_model.` prefix.
    """
    return {
        name: pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)
        for name, pieces in open_clip_pieces(weights).items()
    }


def open_clip_pieces(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The same without copies: each tensor as the pieces that make it up along the first axis."""
    return {
        name: tuple(weights[part].T if part == PROJECTION else weights[part] for part in parts)
        for name, parts in open_clip_parts(weights).items()
    }


def open_clip_parts(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """OpenCLIP's names, and which of transformers' tensors make each up along the first axis; of the projection it is the
    transposed one."""
    parts: dict[str, tuple[str, ...]] = {}
    for full in names:
        name = full.removeprefix("text_model.")
        if name == PROJECTION:
            parts["text_projection"] = (full,)
        elif name.startswith("embeddings."):
            token = name == "embeddings.token_embedding.weight"
            parts["token_embedding.weight" if token else "positional_embedding"] = (full,)
        elif name.startswith("final_layer_norm"):
            parts[name.replace("final_layer_norm", "ln_final")] = (full,)
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            parts[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = tuple(
                f"text_model.{name}".replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            name = name.replace("encoder.layers.", "transformer.resblocks.")
            for transformers, original in OPEN_CLIP_PARTS:
                name = name.replace(transformers, original)
            parts[name] = (full,)
    return parts


def transformers_clip_tensors(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The reverse of `open_clip_tensors` for the first `layers` layers; keys carry the `text_model.` prefix."""
    renamed = {}
    for name, tensor in weights.items():
        block = re.match(r"transformer\.resblocks\.(\d+)\.", name)
        if block and int(block[1]) >= layers:
            continue
        if name == "text_projection":
            renamed["text_projection.weight"] = tensor.T.contiguous()
        elif name == "token_embedding.weight":
            renamed["text_model.embeddings.token_embedding.weight"] = tensor
        elif name == "positional_embedding":
            renamed["text_model.embeddings.position_embedding.weight"] = tensor
        elif name.startswith("ln_final"):
            renamed[name.replace("ln_final", "text_model.final_layer_norm")] = tensor
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            for part, piece in zip("qkv", tensor.chunk(3)):
                renamed[f"text_model.encoder.layers.{match[1]}.self_attn.{part}_proj.{match[2]}"] = piece.contiguous()
        elif block:
            for transformers, original in OPEN_CLIP_PARTS:
                name = name.replace(original, transformers)
            renamed[name.replace("transformer.resblocks.", "text_model.encoder.layers.")] = tensor
    return renamed
