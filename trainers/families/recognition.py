"""Finds out what a model file is, from its header alone: no weights are read, nothing heavy is imported."""
import hashlib
import json
from pathlib import Path

from ..artifacts.tensor_header import read_header
from ..errors import UserError
from ..spec import BaseModelSpec

CONFIGS = Path(__file__).parent / "configs"
UNET = "model.diffusion_model."
NOT_YET = {
    UNET + "joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    UNET + "double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
}


def recognise(path: str, name: str, prediction: str = "auto", configs: str = "") -> BaseModelSpec:
    """What is at `path` (a .safetensors checkpoint or a diffusers folder), or a UserError that says why it is no base.

    `prediction` other than "auto" overrides what the file says about epsilon or v-prediction.
    """
    location = Path(path)
    if location.is_dir():
        family, objective = _recognise_folder(location, name)
        layout, files = "diffusers", sorted(location.glob("*/*.safetensors")) + sorted(location.glob("*/*.json"))
    elif location.is_file():
        if location.suffix.lower() != ".safetensors":
            raise UserError(f"{name!r} is a {location.suffix or 'nameless'} file. Only .safetensors checkpoints are "
                            "read, because other formats can run code; convert it first.")
        family, objective = _recognise_file(location, name)
        layout, files = "single_file", [location]
    else:
        raise UserError(f"The base model {name!r} is not there. Refresh the node list and choose it again.")
    return BaseModelSpec(
        family=family, path=str(location), name=name, layout=layout, fingerprint=fingerprint(files, location),
        objective=objective if prediction == "auto" else prediction, configs=configs,
    )


def config_folder(base: BaseModelSpec) -> Path:
    """The folder whose sub-folders hold the component configs of a base model."""
    if base.layout == "diffusers":
        return Path(base.path)
    return Path(base.configs) if base.configs else CONFIGS / base.family


def component_config(base: BaseModelSpec, component: str) -> dict:
    """The diffusers or transformers config of a component ("unet", "vae", "text_encoder", "scheduler", …)."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    try:
        return json.loads((config_folder(base) / component / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{base.name!r} lacks {component}/{name}, or it is damaged. Download the model again.") from None


def fingerprint(files: list[Path], root: Path) -> str:
    """Changes when a file is replaced. Names, sizes and times, because hashing gigabytes would delay every queue."""
    stats = [(str(file.relative_to(root)) if file != root else file.name, file.stat()) for file in files]
    content = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _recognise_folder(folder: Path, name: str) -> tuple[str, str]:
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"The folder {name!r} is not a diffusers model: unet/config.json or "
                        "scheduler/scheduler_config.json is missing or damaged.") from None
    if unet.get("in_channels", 4) != 4:
        raise UserError(f"{name!r} is an inpainting or otherwise extended model ({unet['in_channels']} input channels). "
                        "Choose the ordinary model of its family.")
    if unet.get("addition_embed_type") == "text_time":
        if not (folder / "text_encoder").is_dir():
            raise UserError(f"{name!r} is an SDXL refiner. Train on the SDXL base instead.")
        family = "sdxl"
    else:
        family = "sd2" if unet.get("use_linear_projection") else "sd1"
    return family, scheduler.get("prediction_type", "epsilon")


def _recognise_file(path: Path, name: str) -> tuple[str, str]:
    tensors, metadata = read_header(path)
    if any(".lora_" in key or ".hada_" in key or ".lokr_" in key for key in tensors):
        raise UserError(f"{name!r} is a LoRA, not a checkpoint. Choose the full model that it was made for.")
    for key, title in NOT_YET.items():
        if key in tensors:
            raise UserError(f"{name!r} is a {title} model, which cannot be trained yet. "
                            "Choose an SD 1.x, SD 2.x or SDXL checkpoint.")
    first = tensors.get(UNET + "input_blocks.0.0.weight")
    if first is None:
        raise UserError(f"{name!r} is not a Stable Diffusion checkpoint: it holds no {UNET}… weights.")
    if first["shape"][1] != 4:
        raise UserError(f"{name!r} is an inpainting or otherwise extended model ({first['shape'][1]} input channels). "
                        "Choose the ordinary checkpoint of its family.")
    if "conditioner.embedders.1.model.ln_final.weight" in tensors:
        family = "sdxl"
    elif "conditioner.embedders.0.model.ln_final.weight" in tensors:
        if UNET + "label_emb.0.0.weight" in tensors:
            raise UserError(f"{name!r} is an SDXL refiner. Train on the SDXL base instead.")
        raise UserError(f"{name!r} is an SD 2.x checkpoint in the generative-models layout, which is not read yet. "
                        "Choose the ordinary checkpoint or the diffusers folder of the same model.")
    elif "cond_stage_model.model.ln_final.weight" in tensors:
        family = "sd2"
    elif any(key.startswith("cond_stage_model.transformer.") for key in tensors):
        family = "sd1"
    else:
        raise UserError(f"{name!r} holds a denoiser but no text encoder. Choose a full checkpoint.")
    if not any(key.startswith("first_stage_model.") for key in tensors):
        raise UserError(f"{name!r} holds no VAE. Choose a full checkpoint.")
    return family, _prediction(path, family, tensors, metadata)


def _prediction(path: Path, family: str, tensors: dict, metadata: dict) -> str:
    """Epsilon or v: from the marker tensor, the metadata, or for SD 2.x from a weight whose spread tells them apart
    (the rule ComfyUI uses: above 0.09 in one norm's bias means v)."""
    if "v_pred" in tensors:
        return "v_prediction"
    stated = metadata.get("modelspec.prediction_type", "").lower()
    if stated in ("v", "v_prediction"):
        return "v_prediction"
    bias = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if family == "sd2" and not stated and bias in tensors:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return "v_prediction" if file.get_tensor(bias).float().std() > 0.09 else "epsilon"
    return "epsilon"
