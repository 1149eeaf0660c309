"""Everything that touches ComfyUI's internals; no other file of the pack does.

Written for ComfyUI 0.3.75 to 0.33: only what both have.
"""
import importlib.util
import os
import time
from pathlib import Path
from typing import Callable, Iterable

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import comfy.utils
import comfyui_version
import folder_paths
import torch
from PIL import Image
from server import PromptServer

from ..trainers.data.manifest import PICTURE_SUFFIXES
from ..trainers.errors import UserError
from ..trainers.files import place_copy, read_json

OLDEST_HOST = (0, 3, 75)
if tuple(int(part) for part in comfyui_version.__version__.split(".")[:3]) < OLDEST_HOST:
    raise ImportError(f"this is ComfyUI {comfyui_version.__version__}, but 0.3.75 or newer is needed; update ComfyUI")

PACK = Path(__file__).resolve().parent.parent
EXAMPLES = PACK / "example_datasets"
DEMO_BASE = PACK / "demo_base"
ENGINE_PACKAGES = ("accelerate", "diffusers", "peft", "pydantic", "safetensors", "transformers")

if "datasets" not in folder_paths.folder_names_and_paths:  # the host has this folder itself since 0.30
    folder_paths.add_model_folder_path("datasets", os.path.join(folder_paths.models_dir, "datasets"))


# ---- folders -------------------------------------------------------------------------------------------------------

def output_folder() -> Path:
    """Where runs and caches live."""
    return Path(folder_paths.get_output_directory()) / "finetune"


def lora_folder() -> Path:
    """`output/loras`, which the host puts on the search path of LoRAs when it starts."""
    return Path(folder_paths.get_output_directory()) / "loras"


def place_lora(file: Path, stem: str) -> str:
    """Copy a LoRA to where every loader finds it, over nothing; returns its name in the loaders' lists."""
    others = [Path(folder) for folder in folder_paths.get_folder_paths("loras")]
    return place_copy(file, lora_folder(), stem, avoid=[folder for folder in others if folder != lora_folder()]).name


def _dataset_roots() -> dict[str, list[Path]]:
    return {
        "examples": [EXAMPLES],
        "input": [Path(folder_paths.get_input_directory())],
        "datasets": [Path(folder) for folder in folder_paths.get_folder_paths("datasets")],
    }


def dataset_choices() -> list[str]:
    """Folders with pictures, as "input/name": in the host's input and datasets folders and in the pack's examples."""
    found = []
    for root, folders in _dataset_roots().items():
        for folder in folders:
            if folder.is_dir():
                found += [f"{root}/{entry.name}" for entry in sorted(folder.iterdir()) if _has_pictures(entry)]
    return found


def _has_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES for entry in entries)
    except OSError:
        return False


def dataset_folder(choice: str) -> Path:
    """The folder behind a choice. A workflow may name anything, so it is looked up inside the allowed folders only."""
    root, _, name = choice.partition("/")
    for folder in _dataset_roots().get(root, []):
        if _is_plain_name(name) and (folder / name).is_dir():
            return folder / name
    raise UserError(f"The dataset folder {choice!r} is not there. Put a folder of pictures into ComfyUI's input folder "
                    "or models/datasets, refresh the node list, and choose it.")


def _is_plain_name(name: str) -> bool:
    """Whether a name stays in its folder. Links that people put there themselves may lead elsewhere."""
    return name not in ("", ".", "..") and Path(name).name == name


def base_choices() -> list[str]:
    """Checkpoints, then diffusers folders as "diffusers/name"."""
    folders = []
    for root in folder_paths.get_folder_paths("diffusers"):
        if os.path.isdir(root):
            folders += [f"diffusers/{path.parent.name}" for path in sorted(Path(root).glob("*/model_index.json"))]
    return folder_paths.get_filename_list("checkpoints") + folders


def base_path(choice: str) -> Path:
    """The checkpoint file or diffusers folder behind a choice."""
    if choice.startswith("diffusers/"):
        for root in folder_paths.get_folder_paths("diffusers"):
            name = choice.removeprefix("diffusers/")
            if _is_plain_name(name) and (Path(root) / name / "model_index.json").is_file():
                return Path(root) / name
    else:
        path = folder_paths.get_full_path("checkpoints", choice)  # keeps within the folders by itself
        if path:
            return Path(path)
    raise UserError(f"The base model {choice!r} is not there. Put the checkpoint into models/checkpoints, or a "
                    "diffusers folder into models/diffusers, refresh the node list, and choose it.")


# ---- running -------------------------------------------------------------------------------------------------------

def require_packages():
    """Raise UserError when libraries of the engine are not installed."""
    missing = [name for name in ENGINE_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"Training needs the Python packages {', '.join(missing)}. Install the pack's requirements.txt "
                        "with the Python that runs ComfyUI, then start it again.")


def free_memory():
    """Give the host's models up, so that the worker gets all of the memory."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def training_device() -> str:
    """"cpu" when the host runs on the CPU by its own choice; else "auto"."""
    return "cpu" if comfy.model_management.get_torch_device().type == "cpu" else "auto"


class NodeProgress:
    """The progress bar, text and picture on a node, all without JavaScript."""

    def __init__(self, node_id: str):
        self.node_id, self.bar, self.picture, self.sent = node_id, None, None, 0.0

    def show(self, text: str, done: int = 0, total: int = 0, picture: Image.Image | None = None):
        """Show `text`, a bar at done / total, and a picture, which stays until the next."""
        now = time.monotonic()
        if now - self.sent > 0.1 or done == total:  # ten messages a second are enough for anybody
            PromptServer.instance.send_progress_text(text, self.node_id)
            self.sent = now
        if total:
            if self.bar is None or self.bar.total != total:
                self.bar = comfy.utils.ProgressBar(total, node_id=self.node_id)
            preview = ("JPEG", picture, 768) if picture is not None else None
            self.bar.update_absolute(done, total, preview)


def follow(events: Iterable[dict | None], cancel: Callable[[], None], report: Callable[[dict], None]):
    """Hand events to `report` until they end. When the user interrupts, `cancel` is called, the remaining events are
    still followed, and the host's interrupt is raised at the end."""
    interruption = None
    for event in events:
        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if event is not None:
                report(event)
        except comfy.model_management.InterruptProcessingException as raised:
            interruption = raised
            cancel()
            if event is not None and event["event"] != "step":
                report(event)
    if interruption is not None:
        raise interruption


# ---- native objects from diffusers configs -------------------------------------------------------------------------

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


def _host_model(config: dict, family: str, weights: dict, device=None):
    """(the host's model config, its model) for a UNet; without weights the model is only shapes on `device` "meta"."""
    model_config = getattr(comfy.supported_models, MODEL_CLASSES[family])(host_unet_config(config))
    model_config.set_inference_dtype(torch.float32, None)
    return model_config, model_config.get_model(weights, "", device=device)


def _host_text_options(config: dict) -> dict:
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
    model_config, model = _host_model(config["unet"], "sd1", unet)
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
        model_options=_host_text_options(config),
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


# ---- proof that a LoRA loads ---------------------------------------------------------------------------------------

def unmatched_keys(lora: dict, family: str, unet_config: dict, text_config: dict) -> list[str]:
    """Keys of a LoRA that the host would leave unloaded for a base with these diffusers and transformers configs.

    The host's own model classes are built on the meta device (names and shapes, no memory) and its own loader is asked.
    """
    _, denoiser = _host_model(unet_config, family, {}, device="meta")
    key_map = comfy.lora.model_lora_keys_unet(denoiser, {})
    if any(key.startswith("lora_te") for key in lora):
        text_classes = {
            "sd1": comfy.sd1_clip.SD1ClipModel, "sd2": comfy.text_encoders.sd2_clip.SD2ClipModel,
            "sdxl": comfy.sdxl_clip.SDXLClipModel,
        }
        options = _host_text_options(text_config) if family == "sd1" else {}
        text = text_classes[family](device="meta", dtype=torch.float32, model_options=options)
        key_map = comfy.lora.model_lora_keys_clip(text, key_map)
    patches = comfy.lora.load_lora(dict(lora), key_map, log_missing=False)
    loaded = {name for name, target in key_map.items() if target in patches}
    return sorted(key for key in lora if _layer(key) not in loaded)


def _layer(key: str) -> str:
    return key.removesuffix(".alpha").split(".lora_", 1)[0]
