"""Names of the original single-file layout (CompVis latent diffusion, Stability's SDXL), from diffusers' names.

The same renaming serves two purposes: LoRA files for SDXL carry the original names, and checkpoints in the original
layout are what every program loads. Sources of the facts: the original repositories' module trees and kohya's
`sdxl_model_util.py`; tensors are the same, apart from those that `*_tensors` functions reshape.
"""
import re
from typing import Iterable, Mapping

import torch
from torch import Tensor

RESNET_PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
UNET_TOP = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}
VAE_PARTS = (
    ("conv_shortcut", "nin_shortcut"), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_q", "q"),
    ("to_k", "k"), ("to_v", "v"), ("conv_norm_out", "norm_out"), (".resnets.", ".block."),
    ("downsamplers.0", "downsample"), ("upsamplers.0", "upsample"), ("encoder.down_blocks", "encoder.down"),
)
OPEN_CLIP_PARTS = (
    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
)


def original_unet_name(name: str, layers_per_block: int, up_blocks_with_attention: Iterable[bool]) -> str:
    """The original name of a diffusers UNet module or parameter, without the `model.diffusion_model.` prefix.

    `up_blocks_with_attention` says for each up block whether it holds attentions: the upsampler's index depends on it.
    Raises KeyError for a name that belongs to no UNet2DConditionModel of this layout.
    """
    for diffusers, original in UNET_TOP.items():
        if name == diffusers or name.startswith(diffusers + "."):
            return original + name[len(diffusers):]
    match = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name)
    if match:
        kind, index, rest = match.groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(index)}.{_resnet(rest)}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if not match:
        raise KeyError(name)
    side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        first = 1 + (layers_per_block + 1) * block
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block}.0.{rest.replace('conv', 'op', 1)}"
        place = f"input_blocks.{first + layer}"
    else:
        first = (layers_per_block + 1) * block
        if kind == "upsamplers":
            return f"output_blocks.{first + layers_per_block}.{1 + list(up_blocks_with_attention)[block]}.{rest}"
        place = f"output_blocks.{first + layer}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    part, dot, tail = rest.partition(".")
    return RESNET_PARTS[part] + dot + tail


def original_vae_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers AutoencoderKL's weights under their original names, without the `first_stage_model.` prefix.

    The middle block's attention was made of 1×1 convolutions: its weights get two trailing dimensions.
    """
    blocks = 1 + max(int(match[1]) for name in weights if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name)))
    renamed = {}
    for name, tensor in weights.items():
        for diffusers, original in VAE_PARTS:
            name = name.replace(diffusers, original)
        name = re.sub(r"decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{blocks - 1 - int(match[1])}", name)
        if ".attn_1." in name and name.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


def open_clip_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers CLIP text model's weights in OpenCLIP's layout: q, k and v fused, the projection transposed.

    Keys of `weights` carry the `text_model.` prefix.
    """
    return {
        name: torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()
        for name, pieces in open_clip_pieces(weights).items()
    }


def open_clip_pieces(weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """The same without copies: each tensor as the pieces that make it up along the first axis."""
    renamed = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            renamed["text_projection"] = (tensor.T,)
        elif name.startswith("embeddings."):
            token = name == "embeddings.token_embedding.weight"
            renamed["token_embedding.weight" if token else "positional_embedding"] = (tensor,)
        elif name.startswith("final_layer_norm"):
            renamed[name.replace("final_layer_norm", "ln_final")] = (tensor,)
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            fused = tuple(weights[f"text_model.{name}".replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj"))
            renamed[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = fused
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            name = name.replace("encoder.layers.", "transformer.resblocks.")
            for transformers, original in OPEN_CLIP_PARTS:
                name = name.replace(transformers, original)
            renamed[name] = (tensor,)
    return renamed


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
