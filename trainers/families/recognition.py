"""Finds out what a model file is, from headers and configs alone: no weights are loaded."""
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping

from ..artifacts.scaled_weights import is_scaled
from ..artifacts.tensor_header import read_header
from ..artifacts.weights import Weights
from ..errors import UserError
from ..spec import BaseModelSpec
from .component_configs import CONFIGS, config_file, read_config
from .sizes import unpacked_configs
from .weight_files import weight_files

UNET = "model.diffusion_model."
NOT_YET = {
    UNET + "joint_blocks.0.context_block.attn.qkv.weight": "Stable Diffusion 3",
    UNET + "double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
    "double_blocks.0.img_attn.norm.key_norm.scale": "Flux",
}
TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
COMPONENTS = {"sd1": ("unet", "vae", "text_encoder"), "sd2": ("unet", "vae", "text_encoder"),
              "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2")}
SMALLER = {
    ("sdxl", (2, 2, 4, 4)): "SSD-1B", ("sdxl", (1, 1, 2, 2)): "Segmind Vega", ("sdxl", (2, 5)): "KOALA 700M",
    ("sdxl", (2, 6)): "KOALA 1B",
}
"""Families, and transformer layers of the input blocks → models cut down from the released one (ComfyUI's
`supported_models.py`)."""
V_SPREAD, LONGEST_BIAS = 0.09, 100_000


@dataclass(frozen=True)
class _Facts:
    family: str
    objective: str
    zero_terminal_snr: bool = False
    storage: str = ""


def recognize(path: str, name: str, prediction: str = "auto", configs: str = "") -> BaseModelSpec:
    """What is at `path` (a .safetensors checkpoint or a diffusers folder), or a UserError that says why it is no base.

    `prediction` other than "auto" overrides what the file says about epsilon or v-prediction.
    """
    location = Path(path)
    if location.is_dir():
        layout, facts = "diffusers", _recognize_folder(location, name)
        files = files_of_folder(location, facts.family, name)
    elif location.is_file():
        if location.suffix.lower() not in (".safetensors", ".sft"):
            raise UserError(f"{name!r} is a {location.suffix or 'nameless'} file. Only .safetensors checkpoints are "
                            "read, because other formats can run code; convert it first.")
        configs = configs or unpacked_configs(read_header(location)[1])
        layout, facts, files = "single_file", _recognize_file(location, name, configs), [location]
    else:
        raise UserError(f"The base model {name!r} is not there. Refresh the node list and choose it again.")
    objective = facts.objective if prediction == "auto" else prediction
    return BaseModelSpec(
        family=facts.family, path=str(location), name=name, layout=layout, fingerprint=fingerprint(files, location),
        objective=objective, configs=configs, storage=facts.storage,
        zero_terminal_snr=facts.zero_terminal_snr and objective == "v_prediction",
    )


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """Changes when a file is replaced. Names, sizes and times, because hashing gigabytes would delay every queue."""
    stats = [(str(file.relative_to(root)) if file != root else file.name, file.stat()) for file in files]
    content = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def fingerprint_of(path: Path) -> str:
    """Changes when anything of a model file or of a diffusers folder does; for lists, before it is known what it is."""
    files = [file for file in sorted(path.glob("*/*")) if file.is_file()] if path.is_dir() else [path]
    return fingerprint(files, path)


# ---- diffusers folders ---------------------------------------------------------------------------------------------

def files_of_folder(folder: Path, family: str, name: str) -> list[Path]:
    """Every file of a diffusers folder that is read: the weights that are loaded, configs and tokenizers."""
    found = [folder / "scheduler" / config_file("scheduler")]
    for component in COMPONENTS[family]:
        weights = weight_files(folder, component, name)
        found += [*weights.files, folder / component / config_file(component)]
        found += [weights.index] if weights.index else []
    tokenizers = (file for file in folder.glob("tokenizer*/*") if file.suffix in (".json", ".txt"))
    return sorted({*found, *tokenizers})


def _recognize_folder(folder: Path, name: str) -> _Facts:
    for component in ("unet", "scheduler"):
        if not (folder / component / config_file(component)).is_file():
            raise UserError(f"The folder {name!r} is not a diffusers model: {component}/{config_file(component)} is "
                            "missing.")
    unet, scheduler = read_config(folder, "unet", name), read_config(folder, "scheduler", name)
    _require_channels(unet.get("in_channels", 4), name)
    _require_ordinary_unet(unet, name)
    family = "sd2" if unet.get("use_linear_projection") else "sd1"
    if unet.get("addition_embed_type") == "text_time":
        if not (folder / "text_encoder").is_dir():
            raise UserError(f"{name!r} is an SDXL refiner. Train on the SDXL base instead.")
        family = "sdxl"
    for component in COMPONENTS[family]:
        config = read_config(folder, component, name)
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise _other_objective(name, "latents with a mean of their own, as Playground v2.5 has them")
        for file in weight_files(folder, component, name).files:
            _require_no_scales(read_header(file)[0], f"{name}/{component}/{file.name}")
    objective = _objective_of_scheduler(scheduler, name)
    return _Facts(family, objective, bool(scheduler.get("rescale_betas_zero_snr")))


def _require_ordinary_unet(unet: Mapping, name: str):
    """Only shapes whose layers have names in every program's files: a symmetric UNet of blocks with the same layers."""
    if unet.get("time_cond_proj_dim") is not None:
        raise _other_objective(name, "LCM, whose guidance is an input")
    levels = len(unet["block_out_channels"])
    depths = unet.get("transformer_layers_per_block", 1)
    same_length = all(len(unet[field]) == levels for field in ("down_block_types", "up_block_types")) and (
        isinstance(depths, int) or len(depths) == levels)
    kinds = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    odd = next((field for field, usual in (
        ("mid_block_type", "UNetMidBlock2DCrossAttn"), ("reverse_transformer_layers_per_block", None),
        ("class_embed_type", None), ("num_class_embeds", None), ("encoder_hid_dim_type", None), ("encoder_hid_dim", None),
    ) if unet.get(field, usual) != usual), None)
    if not same_length or not kinds.issuperset((*unet["down_block_types"], *unet["up_block_types"])):
        odd = "down_block_types"
    if unet.get("addition_embed_type", "text_time") != "text_time":
        odd = "addition_embed_type"
    if odd:
        raise UserError(f"{name!r} has a UNet of another kind ({odd} in unet/config.json), as SSD-1B, KOALA and unCLIP "
                        "models have; it cannot be trained yet. Choose an ordinary SD 1.x, SD 2.x or SDXL model.")


def _objective_of_scheduler(scheduler: Mapping, name: str) -> str:
    kind, stated = scheduler.get("_class_name", ""), scheduler.get("prediction_type", "epsilon")
    if kind.startswith("EDM") or scheduler.get("timestep_type") == "continuous":
        raise _other_objective(name, f"EDM ({kind})")
    if kind.startswith(("LCM", "TCD")):
        raise _other_objective(name, f"distilled for few steps ({kind})")
    if kind.startswith("FlowMatch") or stated not in ("epsilon", "v_prediction"):
        raise _other_objective(name, kind if kind.startswith("FlowMatch") else f"predicts {stated!r}")
    return stated


def _require_no_scales(tensors: Mapping[str, dict], title: str):
    scale = next((key for key in tensors if key.endswith(("scale_weight", "weight_scale", "weight_scale_inv"))), None)
    if scale:
        raise UserError(f"{title!r} keeps its weights with scales ({scale[:100]}), which diffusers does not read. Choose "
                        "the fp16 or bf16 version of this model.")


# ---- single files --------------------------------------------------------------------------------------------------

def _recognize_file(path: Path, name: str, configs: str) -> _Facts:
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
    if len(first["shape"]) != 4:
        raise UserError(f"{name!r} is damaged: {UNET}input_blocks.0.0.weight is no convolution. Download it again.")
    _require_channels(first["shape"][1], name)
    family = _family_of_file(tensors, name)
    if not any(key.startswith("first_stage_model.") for key in tensors):
        raise UserError(f"{name!r} holds no VAE. Choose a full checkpoint.")
    objective = other_objective(tensors, metadata)
    if objective:
        raise _other_objective(name, objective)
    _require_layers(tensors, first["shape"][0], family, name, configs)
    weights = Weights.of_file(path)
    eight_bit = any(facts["dtype"].startswith("F8_") for key, facts in tensors.items() if key.startswith(UNET))
    return _Facts(family, _prediction(weights, family, tensors, metadata), "ztsnr" in tensors,
                  "scaled fp8" if is_scaled(weights.entries) else "fp8" if eight_bit else "")


def _family_of_file(tensors: Mapping[str, dict], name: str) -> str:
    labels = UNET + "label_emb.0.0.weight" in tensors
    if "conditioner.embedders.1.model.ln_final.weight" in tensors:
        return "sdxl"
    if "conditioner.embedders.0.model.ln_final.weight" in tensors:
        if labels:
            raise UserError(f"{name!r} is an SDXL refiner. Train on the SDXL base instead.")
        raise UserError(f"{name!r} is an SD 2.x checkpoint in the generative-models layout, which is not read yet. "
                        "Choose the ordinary checkpoint or the diffusers folder of the same model.")
    if labels:
        raise UserError(f"{name!r} reads more than text, as unCLIP models do; it cannot be trained yet. Choose the ordinary "
                        "checkpoint of its family.")
    if "cond_stage_model.model.ln_final.weight" in tensors:
        return "sd2"
    if any(key.startswith("cond_stage_model.transformer.") for key in tensors):
        return "sd1"
    raise UserError(f"{name!r} holds a denoiser but no text encoder. Choose a full checkpoint.")


def other_objective(tensors: Iterable[str], metadata: Mapping[str, str]) -> str:
    """What a file of these tensors is trained for where it is neither epsilon nor v-prediction; "" where it is. The
    markers are those of ComfyUI's `supported_models.py`."""
    names = set(tensors)
    if names & {"edm_mean", "edm_std"}:
        return "EDM, as Playground v2.5"
    if any(name.startswith("edm_vpred.") for name in names):
        return "EDM with v-prediction, as CosXL"
    if UNET + "time_embed.cond_proj.weight" in names:
        return "LCM, whose guidance is an input"
    stated = metadata.get("modelspec.prediction_type", "").strip().lower()
    return "" if stated in ("", "epsilon", "eps", "v", "v_prediction", "v-prediction") else f"predicts {stated[:40]!r}"


def objective_of(path: Path) -> str:
    """What a checkpoint or diffusers folder of any family says that it predicts: "epsilon", "v_prediction", or words."""
    if path.is_dir():
        return recognize(str(path), path.name).objective
    tensors, metadata = read_header(path)
    family = "sd2" if "cond_stage_model.model.ln_final.weight" in tensors else ""
    return other_objective(tensors, metadata) or _prediction(Weights.of_file(path), family, tensors, metadata)


def _require_layers(tensors: Iterable[str], width: int, family: str, name: str, configs: str):
    """Models that were cut down from a released one have its names and fewer layers."""
    config = read_config(Path(configs) if configs else CONFIGS / family, "unet", name)
    found: dict[int, int] = {}
    for key in tensors:
        if match := re.match(re.escape(UNET) + r"input_blocks\.(\d{1,3})\.1\.transformer_blocks\.(\d{1,3})\.", key):
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    if width != config["block_out_channels"][0] or not found:
        return  # of another size altogether: the loader says what does not fit
    depths, layers = config.get("transformer_layers_per_block", 1), config["layers_per_block"]
    wanted = {1 + (layers + 1) * level + layer: depths if isinstance(depths, int) else depths[level]
              for level, block in enumerate(config["down_block_types"]) if block.startswith("CrossAttn")
              for layer in range(layers)}
    if found != wanted:
        depths_found = tuple(found[index] for index in sorted(found))
        kind = SMALLER.get((family, depths_found), f"an {TITLES[family]} with other layers")
        raise UserError(f"{name!r} is {kind}, cut down from {TITLES[family]}; it cannot be trained yet. Choose an ordinary "
                        f"{TITLES[family]} checkpoint.")


def _require_channels(channels: int, name: str):
    if channels != 4:
        raise UserError(f"{name!r} is an inpainting or otherwise extended model ({channels} input channels). "
                        "Choose the ordinary model of its family.")


def _other_objective(name: str, kind: str) -> UserError:
    return UserError(f"{name!r} is a model of another kind: {kind}. Trained as one that predicts noise (epsilon) or v, its "
                     "images would break. Choose an ordinary SD 1.x, SD 2.x or SDXL model.")


def _prediction(weights: Weights, family: str, tensors: Mapping[str, dict], metadata: Mapping[str, str]) -> str:
    """Epsilon or v: from the marker tensor, the metadata, or for SD 2.x from a weight whose spread tells them apart
    (the rule ComfyUI uses: above 0.09 in one norm's bias means v)."""
    if "v_pred" in tensors:
        return "v_prediction"
    stated = metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated.startswith("v"):
        return "v_prediction"
    bias = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if family == "sd2" and not stated and bias in weights and 1 < weights.entries[bias].bytes < LONGEST_BIAS:
        return "v_prediction" if weights.weight(bias).std() > V_SPREAD else "epsilon"
    return "epsilon"
