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

from ...trainers.errors import UserError
from ...trainers.files import read_json

MODEL_CLASSES = {"sd1": "SD15", "sd2": "SD20", "sdxl": "SDXL"}
ORIGINAL_PREFIXES = {
    "unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."}
"""Where a single file of SD 1.x keeps its parts."""


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


def knows_size(config: dict, family: str) -> bool:
    """Whether the host's own checkpoint loader has a model of this diffusers config; it knows the released sizes only."""
    return getattr(comfy.supported_models, MODEL_CLASSES[family]).matches(host_unet_config(config))


def load_checkpoint(files: list[Path], family: str, configs: Path):
    """A checkpoint in the original layout, in one file or in shards, as native (MODEL, CLIP, VAE).

    `configs` is the folder of the base's diffusers configs. Sizes that the host does not know are built from them.
    """
    known = knows_size(read_json(configs / "unet" / "config.json"), family)
    embeddings = folder_paths.get_folder_paths("embeddings")
    if known and len(files) == 1:
        return comfy.sd.load_checkpoint_guess_config(str(files[0]), embedding_directory=embeddings)[:3]
    weights = {}
    for file in files:
        weights |= comfy.utils.load_torch_file(str(file), safe_load=True)
    if known:
        return comfy.sd.load_state_dict_guess_config(weights, embedding_directory=embeddings)[:3]
    if family != "sd1":
        raise UserError("The checkpoint is finished, but ComfyUI has no model of its size, so it cannot be drawn with here. "
                        "Smaller models than the released ones are only drawn with where they are SD 1.x.")
    return _build({
        part: {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        for part, prefix in ORIGINAL_PREFIXES.items()
    }, configs)


def load_native(folder: Path):
    """A small SD 1.x diffusers folder as native (MODEL, CLIP, VAE), for every node of the host.

    The host's own diffusers loader takes full-size models only: it knows neither other widths nor 8 norm groups.
    """
    files = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    weights = {part: comfy.utils.load_torch_file(str(folder / part / f"{stem}.safetensors"), safe_load=True)
               for part, stem in files.items()}
    names = comfy.utils.unet_to_diffusers(host_unet_config(read_json(folder / "unet" / "config.json")))
    weights["unet"] = {names[name]: tensor for name, tensor in weights["unet"].items()}
    return _build(weights, folder)


def _build(weights: dict[str, dict], configs: Path):
    """Native objects of a small SD 1.x: its UNet's weights in the original names, the VAE's in either."""
    config = {part: read_json(configs / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    model_config, model = host_model(config["unet"], "sd1", weights["unet"])
    model_config.latent_format.scale_factor = model.latent_format.scale_factor = config["vae"]["scaling_factor"]
    model.load_model_weights(weights["unet"], "")
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return patcher, _build_text(weights["text_encoder"], config["text_encoder"]), _build_vae(weights["vae"], config["vae"])


def _build_text(weights: dict, config: dict):
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    clip = comfy.sd.CLIP(
        target, embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options=host_text_options(config),
    )
    clip.load_sd({f"clip_l.transformer.{name}": tensor for name, tensor in weights.items()}, full_model=True)
    return clip


def host_vae_config(config: dict) -> dict:
    """The host's description of a VAE from diffusers' `vae/config.json`."""
    widths = config["block_out_channels"]
    return {
        "double_z": True, "z_channels": config["latent_channels"], "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": widths[0], "ch_mult": [width // widths[0] for width in widths], "attn_resolutions": [], "dropout": 0.0,
        "num_res_blocks": config["layers_per_block"],
    }


def _build_vae(weights: dict, config: dict):
    vae = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": host_vae_config(config), "embed_dim": config["latent_channels"]}}
    )
    for module in vae.first_stage_model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = config["norm_num_groups"]  # the host builds all with 32
    return vae
