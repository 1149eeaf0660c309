"""The host's own model objects, built from diffusers configs: for models smaller than its loaders know."""
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.diffusers_load
import comfy.model_base
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch

from ...trainers import families
from ...trainers.errors import UserError
from ...trainers.families.component_configs import config_folder, read_config
from ...trainers.families.weight_files import weight_files
from ...trainers.spec import BaseModelSpec
from .detection import folder_refusal, host_refusal, under
from .host_families import HOST_FAMILIES, SMALL
from .separate_parts import load_parts

PREDICTIONS = {
    "epsilon": (comfy.model_base.ModelType.EPS, comfy.model_sampling.EPS),
    "v_prediction": (comfy.model_base.ModelType.V_PREDICTION, comfy.model_sampling.V_PREDICTION),
}
"""What a base predicts → what the host calls such models, and how it samples them."""
ORIGINAL_PREFIXES = {
    "unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."}
"""Where a single file of SD 1.x keeps its parts."""
TEXT_ENCODERS = "text_encoders."
"""Where a single file of a transformer keeps its text encoders; the rest is as in SD 1.x."""
Natives = tuple[Any, Any, Any]
"""MODEL, CLIP and VAE of the host; its own signatures make each of them optional."""


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
    model_config = getattr(comfy.supported_models, HOST_FAMILIES[family].model_class)(host_unet_config(config))
    model_config.set_inference_dtype(torch.float32, None)
    return model_config, model_config.get_model(weights, "", device=device)


def host_text_options(config: dict) -> dict:
    wanted = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "hidden_act")
    return {"clip_l_model_config": {name: config[name] for name in wanted}}


def core_refusal(base: BaseModelSpec) -> str:
    """Why the host's own loaders would not load a base; empty when they would."""
    path = Path(base.path)
    if base.layout == "separate_files" or (_is_transformer(base) and base.layout == "diffusers"):
        return ""  # by Load Diffusion Model, Load CLIP and Load VAE; what they refuse is said when they are asked
    return host_refusal([path]) if base.layout == "single_file" else folder_refusal(path)


def load_base(base: BaseModelSpec) -> Natives:
    """Any base that can be trained as native (MODEL, CLIP, VAE). The model predicts what the base says: where the host
    found another thing in the files, its sampling is replaced, as its own ModelSamplingDiscrete does."""
    if base.layout == "separate_files" or (base.layout == "diffusers" and _is_transformer(base)):
        return _renewable(load_parts, base)
    if base.layout == "diffusers":
        model, clip, vae = load_folder(Path(base.path), base.family)
    else:
        model, clip, vae = load_checkpoint([Path(base.path)], base.family, config_folder(base))
    wanted, sampling = PREDICTIONS.get(base.prediction_type, (model.model.model_type, None))
    if model.model.model_type != wanted and model.model.model_type in (found for found, _ in PREDICTIONS.values()):
        class Sampling(comfy.model_sampling.ModelSamplingDiscrete, sampling):
            pass

        model = model.clone()
        model.add_object_patch("model_sampling", Sampling(model.model.model_config))
    return model, clip, vae


def _is_transformer(base: BaseModelSpec) -> bool:
    return any(part.name == "transformer" for part in base.components)


def load_trained(files: list[Path], base: BaseModelSpec, alone: bool) -> Natives:
    """A checkpoint that was trained on a base; `alone`: its denoiser without the base's other parts."""
    if alone:
        return _renewable(load_parts, base, files[0])
    return load_checkpoint(files, base.family, config_folder(base))


def empty_latent(base: BaseModelSpec, side: int) -> dict:
    """A square empty latent, `side` pixels wide: {"samples": zeros [1, channels, height, width]}."""
    form = families.get(base.family).latent_format(base)
    shape = (1, form.channels, side // form.downscale, side // form.downscale)
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def load_checkpoint(files: list[Path], family: str, configs: Path) -> Natives:
    """A checkpoint in the original layout, in one file or in shards, as native (MODEL, CLIP, VAE).

    `configs` is the folder of the base's diffusers configs. Sizes that the host does not know are built from them.
    """
    if not host_refusal(files):
        if len(files) == 1:
            native: Any = comfy.sd.load_checkpoint_guess_config(
                str(files[0]), embedding_directory=folder_paths.get_folder_paths("embeddings"))
            return native[:3]
        return _renewable(_load_shards, files)
    if (configs / "transformer").is_dir():
        return _renewable(_load_small_transformer, files, configs)
    if family not in HOST_FAMILIES or not HOST_FAMILIES[family].any_size:
        raise UserError("ComfyUI has no model of this checkpoint's size, so it cannot generate images here. Smaller models "
                        "than the released ones can do so only where they are SD 1.x or SD 3.")
    return _renewable(_load_small_file, files, configs)


def load_folder(folder: Path, family: str) -> Natives:
    """A diffusers folder as native (MODEL, CLIP, VAE): by the host's own loader where it knows the size."""
    if not folder_refusal(folder):
        return _renewable(_load_full_folder, folder)
    if family not in HOST_FAMILIES or not HOST_FAMILIES[family].any_size:
        raise UserError("ComfyUI has no model of this folder's size, so it cannot generate images here. Smaller models than "
                        "the released ones can do so only where they are SD 1.x.")
    return load_native(folder)


def load_native(folder: Path) -> Natives:
    """A small SD 1.x diffusers folder as native (MODEL, CLIP, VAE), for every node of the host.

    The host's own diffusers loader takes full-size models only: it knows neither other widths nor 8 norm groups.
    """
    return _renewable(_load_small_folder, folder)


def _renewable(load: Callable[..., Natives], *arguments) -> Natives:
    """What `load` gives, with the way to load it anew, as the host's own loaders leave it: since 0.15 the host makes a
    copy with weights of its own by that (TrainLoraNode, several GPUs), and refuses objects that have none."""
    natives = load(*arguments)
    for index, native in enumerate(natives):
        patcher = getattr(native, "patcher", native)
        if getattr(patcher, "cached_patcher_init", None) is None:
            patcher.cached_patcher_init = (_made_anew, (index, load, arguments))
    return natives


def _made_anew(index: int, load: Callable, arguments: tuple, disable_dynamic: bool = False):
    """One of the three as its patcher, fresh from the files."""
    options = {"disable_dynamic": True} if disable_dynamic else {}
    native = load(*arguments, **options)[index]
    return getattr(native, "patcher", native)


def _load_shards(files: list[Path], **options) -> Natives:
    native: Any = comfy.sd.load_state_dict_guess_config(
        _read(files), embedding_directory=folder_paths.get_folder_paths("embeddings"), **options)
    return native[:3]


def _load_full_folder(folder: Path, **options) -> Natives:
    return comfy.diffusers_load.load_diffusers(
        str(folder), embedding_directory=folder_paths.get_folder_paths("embeddings"))


def _load_small_file(files: list[Path], configs: Path, **options) -> Natives:
    weights = _read(files)
    return _build({part: under(prefix, weights) for part, prefix in ORIGINAL_PREFIXES.items()}, configs, **options)


def _load_small_transformer(files: list[Path], configs: Path, **options) -> Natives:
    """The host reads a transformer's sizes off its tensors; those of the text encoder and of the VAE it is told."""
    weights = _read(files)
    prefix = ORIGINAL_PREFIXES["unet"]
    found: Any = comfy.model_detection.model_config_from_unet(weights, prefix)
    clip = _build_text(found.clip_target(state_dict=weights), read_config(configs, "text_encoder", configs.name),
                       under(TEXT_ENCODERS, weights), **options)
    vae = _build_vae(under(ORIGINAL_PREFIXES["vae"], weights), read_config(configs, "vae", configs.name))
    return comfy.sd.load_diffusion_model_state_dict(under(prefix, weights), **options), clip, vae


def _load_small_folder(folder: Path, **options) -> Natives:
    weights = {part: _read(weight_files(folder, part, folder.name).files) for part in ("unet", "vae", "text_encoder")}
    names = comfy.utils.unet_to_diffusers(host_unet_config(read_config(folder, "unet", folder.name)))
    weights["unet"] = {names[name]: tensor for name, tensor in weights["unet"].items()}
    return _build(weights, folder, **options)


def _read(files: list[Path]) -> dict:
    weights = {}
    for file in files:
        content: Any = comfy.utils.load_torch_file(str(file), safe_load=True)
        weights |= content
    return weights


def _build(weights: dict[str, dict], configs: Path, **options) -> Natives:
    """Native objects of a small SD 1.x: its UNet's weights in the original names, the VAE's in either. The model stays
    whole in memory, also where the host loads others piece by piece (`disable_dynamic`)."""
    config = {part: read_config(configs, part, configs.name) for part in ("unet", "vae", "text_encoder")}
    model_config, model = host_model(config["unet"], SMALL, weights["unet"])
    model_config.latent_format.scale_factor = model.latent_format.scale_factor = config["vae"]["scaling_factor"]
    model.load_model_weights(weights["unet"], "")
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    text = _build_text(
        comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        config["text_encoder"],
        {f"clip_l.transformer.{name}": tensor for name, tensor in weights["text_encoder"].items()}, **options)
    return patcher, text, _build_vae(weights["vae"], config["vae"])


def _build_text(target, config: dict, weights: dict, **options):
    clip = comfy.sd.CLIP(
        target, embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options=host_text_options(config), **options,
    )
    clip.load_sd(weights, full_model=True)
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
    channels = config["latent_channels"]
    for name, width in (("quant_conv", 2 * channels), ("post_quant_conv", channels)):
        if f"{name}.weight" not in weights:  # the host's class for any size has both, so they do nothing
            weights |= {f"{name}.weight": torch.eye(width)[:, :, None, None], f"{name}.bias": torch.zeros(width)}
    vae: Any = comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": host_vae_config(config), "embed_dim": channels}})
    vae.latent_channels = channels
    for module in vae.first_stage_model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = config["norm_num_groups"]  # the host builds all with 32
    return vae
