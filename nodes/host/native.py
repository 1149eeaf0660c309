"""The host's own model objects, built from diffusers configs: for models smaller than its loaders know."""
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch

from ...trainers.files import read_json

MODEL_CLASSES = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}


def host_unet_config(config: dict) -> dict:
    """The host's description of a UNet from diffusers' `unet/config.json`."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else list(depths)
    per_level = [
        depth if block.startswith("CrossAttn") else 0 for depth, block in zip(depths, config["down_block_types"])
    ]
    added = config.get("projection_class_embeddings_input_dim")
    return {
        "use_checkpoint": False, "image_size": 32, "use_spatial_transformer": True, "legacy": False,
        "in_channels": config["in_channels"], "out_channels": config["out_channels"], "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths], "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in per_level for _ in range(layers)],
        "transformer_depth_output": [depth for depth in per_level for _ in range(layers + 1)],
        "transformer_depth_middle": depths[-1], "context_dim": config["cross_attention_dim"],
        "use_linear_in_transformer": config.get("use_linear_projection", False), "use_temporal_attention": False,
        "adm_in_channels": added, **({"num_classes": "sequential"} if added else {}),
    }


def host_model(config: dict, family: str, weights: dict, device=None):
    """(the host's model config, its model) for a UNet; without weights the model is only shapes on `device` "meta"."""
    model_config = getattr(comfy.supported_models, MODEL_CLASSES[family])(host_unet_config(config))
    model_config.set_inference_dtype(torch.float32, None)
    return model_config, model_config.get_model(weights, "", device=device)


def host_text_options(config: dict) -> dict:
    wanted = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "hidden_act")
    return {"clip_l_model_config": {name: config[name] for name in wanted}}


def load_native(folder: Path):
    """A small SD 1.x diffusers folder as native (MODEL, CLIP, VAE), for every node of the host.

    The host's own diffusers loader takes full-size models only: it knows neither other widths nor 8 norm groups.
    """
    config = {part: read_json(folder / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    unet = comfy.utils.load_torch_file(str(folder / "unet" / "diffusion_pytorch_model.safetensors"), safe_load=True)
    names = comfy.utils.unet_to_diffusers(host_unet_config(config["unet"]))
    unet = {names[name]: tensor for name, tensor in unet.items()}
    model_config, model = host_model(config["unet"], "sd1", unet)
    model_config.latent_format.scale_factor = model.latent_format.scale_factor = config["vae"]["scaling_factor"]
    model.load_model_weights(unet, "")
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return patcher, _load_native_text(folder, config["text_encoder"]), _load_native_vae(folder, config["vae"])


def _load_native_text(folder: Path, config: dict):
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(
        target, embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options=host_text_options(config),
    )
    weights = comfy.utils.load_torch_file(str(folder / "text_encoder" / "model.safetensors"), safe_load=True)
    clip.load_sd({f"clip_l.transformer.{name}": tensor for name, tensor in weights.items()}, full_model=True)
    return clip


def _load_native_vae(folder: Path, config: dict):
    widths = config["block_out_channels"]
    shape = {
        "double_z": True, "z_channels": config["latent_channels"], "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": widths[0], "ch_mult": [width // widths[0] for width in widths], "attn_resolutions": [], "dropout": 0.0,
        "num_res_blocks": config["layers_per_block"],
    }
    weights = comfy.utils.load_torch_file(
        str(folder / "vae" / "diffusion_pytorch_model.safetensors"), safe_load=True
    )
    vae = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": shape, "embed_dim": config["latent_channels"]}}
    )
    for module in vae.first_stage_model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = config["norm_num_groups"]  # the host builds all with 32
    return vae
