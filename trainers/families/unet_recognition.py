"""What a file or folder of Stable Diffusion 1.x, 2.x or XL is, from its header or configs: which family, what it predicts,
where its components lie."""
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..artifacts.tensor_header import read_header
from ..artifacts.weights import Weights
from ..errors import UserError
from ..spec import ComponentSpec
from ..spec.base_model import PredictionType
from .component_configs import CONFIGS, config_file, read_config
from .component_recognition import is_full, storage_of, unet_family
from .model_parts import ModelSource, Recognized, in_file, in_folder
from .separate_files import WantedPart, separate_components
from .sizes import UNET, VAE
from .weight_files import weight_files

TITLES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
CLIP_L = ("clip_l.safetensors",)
TEXT = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
}
"""Text encoders of a family, and the prefix of each in a single file."""
PARTS = {
    "sd1": (WantedPart("text_encoder", "clip_l", CLIP_L),
            WantedPart("vae", "vae", ("vae-ft-mse-840000-ema-pruned.safetensors",), channels=4)),
    "sd2": (WantedPart("text_encoder", "clip_h", ("clip_h.safetensors",)),
            WantedPart("vae", "vae", ("vae-ft-mse-840000-ema-pruned.safetensors",), channels=4)),
    "sdxl": (WantedPart("text_encoder", "clip_l", CLIP_L), WantedPart("text_encoder_2", "clip_g", ("clip_g.safetensors",)),
             WantedPart("vae", "vae", ("sdxl_vae.safetensors",), channels=4)),
}
"""What lies beside a denoiser in a file of its own."""
COMPONENTS = {family: ("unet", "vae", *text) for family, text in TEXT.items()}
SMALLER = {
    ("sdxl", (2, 2, 4, 4)): "SSD-1B", ("sdxl", (1, 1, 2, 2)): "Segmind Vega", ("sdxl", (2, 5)): "KOALA 700M",
    ("sdxl", (2, 6)): "KOALA 1B",
}
"""Families, and transformer layers of the input blocks → models cut down from the released one (ComfyUI's
`supported_models.py`)."""
V_SPREAD, LONGEST_BIAS = 0.09, 100_000
FIRST = "input_blocks.0.0.weight"
"""The first weight of a UNet, by its original name."""


def recognize(source: ModelSource, family: str) -> Recognized | None:
    """What a source of the family `family` is; None for everything that is of another. UserError for what is of none that
    can be trained."""
    if source.layout == "diffusers":
        return _recognize_folder(source.path, source.name, family)
    return _recognize_files(source, family) if source.layout == "separate_files" else _recognize_file(source, family)


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


def _recognize_folder(folder: Path, name: str, wanted: str) -> Recognized | None:
    if not all((folder / component / config_file(component)).is_file() for component in ("unet", "scheduler")):
        return None
    unet, scheduler = read_config(folder, "unet", name), read_config(folder, "scheduler", name)
    require_four(unet.get("in_channels", 4), name)
    _require_ordinary_unet(unet, name)
    family = "sd2" if unet.get("use_linear_projection") else "sd1"
    if unet.get("addition_embed_type") == "text_time":
        if not (folder / "text_encoder").is_dir():
            raise UserError(f"{name!r} is an SDXL refiner. Train on the SDXL base instead.")
        family = "sdxl"
    if family != wanted:
        return None
    for component in COMPONENTS[family]:
        config = read_config(folder, component, name)
        if config.get("latents_mean") is not None or config.get("latents_std") is not None:
            raise _other_objective(name, "latents with a mean of their own, as Playground v2.5 has them")
        for file in weight_files(folder, component, name).files:
            _require_no_scales(read_header(file)[0], f"{name}/{component}/{file.name}")
    prediction_type = _prediction_type_of_scheduler(scheduler, name)
    return Recognized(prediction_type, in_folder(folder, COMPONENTS[family]), tuple(files_of_folder(folder, family, name)),
                      bool(scheduler.get("rescale_betas_zero_snr")))


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


def _prediction_type_of_scheduler(scheduler: Mapping, name: str) -> PredictionType:
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

def _recognize_file(source: ModelSource, wanted: str) -> Recognized | None:
    path, name = source.path, source.name
    tensors, metadata = read_header(path)
    if UNET + FIRST not in tensors:
        return None
    _require_channels(tensors, UNET, name)
    family = _family_of_file(tensors, name)
    if family != wanted:
        return None
    if not any(key.startswith(VAE) for key in tensors):
        raise UserError(f"{name!r} holds no VAE. Choose a full checkpoint, or use Base Model from Parts.")
    return _recognized(source, family, tensors, metadata, in_file(path, {"unet": UNET, "vae": VAE, **TEXT[family]}))


def _recognized(source: ModelSource, family: str, tensors: Mapping[str, dict], metadata: Mapping[str, str],
                components: tuple[ComponentSpec, ...]) -> Recognized:
    """What the file of the denoiser says of it. UserError for what cannot be trained."""
    prefix = components[0].prefix
    if other := other_objective(tensors, metadata, prefix):
        raise _other_objective(source.name, other)
    _require_layers(tensors, prefix, family, source.name, source.configs)
    weights = Weights.of_file(source.path)
    storage = storage_of(tensors, prefix)
    return Recognized(_prediction(weights, prefix, family, tensors, metadata), components, (source.path, *source.others),
                      "ztsnr" in tensors,
                      "" if is_full(storage) else storage)


# ---- separate files ------------------------------------------------------------------------------------------------

def _recognize_files(source: ModelSource, wanted: str) -> Recognized | None:
    """A denoiser with files of a VAE and of text encoders, as ComfyUI's loaders take them."""
    tensors, metadata = read_header(source.path)
    prefix = next((start for start in (UNET, "") if start + FIRST in tensors), None)
    if prefix is None:
        return None
    _require_channels(tensors, prefix, source.name)
    if unet_family(tensors, prefix) != wanted:
        return None
    found = separate_components(source, TITLES[wanted], PARTS[wanted])
    unet = ComponentSpec(name="unet", path=str(source.path), prefix=prefix)
    components = (unet, *(found[name] for name in COMPONENTS[wanted] if name != "unet"))
    return _recognized(source, wanted, tensors, metadata, components)


# ---- what all of them say ------------------------------------------------------------------------------------------

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
    raise UserError(f"{name!r} holds a denoiser but no text encoder. Choose a full checkpoint, or use the node Base Model "
                    "from Parts.")


def other_objective(tensors: Iterable[str], metadata: Mapping[str, str], prefix: str = UNET) -> str:
    """What a file of these tensors is trained for where it is neither epsilon nor v-prediction; "" where it is. The
    markers are those of ComfyUI's `supported_models.py`."""
    names = set(tensors)
    if names & {"edm_mean", "edm_std"}:
        return "EDM, as Playground v2.5"
    if any(name.startswith("edm_vpred.") for name in names):
        return "EDM with v-prediction, as CosXL"
    if prefix + "time_embed.cond_proj.weight" in names:
        return "LCM, whose guidance is an input"
    stated = metadata.get("modelspec.prediction_type", "").strip().lower()
    return "" if stated in ("", "epsilon", "eps", "v", "v_prediction", "v-prediction") else f"predicts {stated[:40]!r}"


def prediction_type_of(path: Path, tensors: Mapping[str, dict], metadata: Mapping[str, str]) -> str:
    """What a checkpoint says that it predicts: "epsilon", "v_prediction", or words; "" where it holds no UNet."""
    family = "sd2" if "cond_stage_model.model.ln_final.weight" in tensors else ""
    if UNET + FIRST not in tensors:
        return ""
    return other_objective(tensors, metadata) or _prediction(Weights.of_file(path), UNET, family, tensors, metadata)


def _require_layers(tensors: Mapping[str, dict], prefix: str, family: str, name: str, configs: str):
    """Models that were cut down from a released one have its names and fewer layers."""
    config = read_config(Path(configs) if configs else CONFIGS / family, "unet", name)
    found: dict[int, int] = {}
    width = tensors[prefix + FIRST]["shape"][0]
    for key in tensors:
        if match := re.match(re.escape(prefix) + r"input_blocks\.(\d{1,3})\.1\.transformer_blocks\.(\d{1,3})\.", key):
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


def _require_channels(tensors: Mapping[str, dict], prefix: str, name: str):
    shape = tensors[prefix + FIRST]["shape"]
    if len(shape) != 4:
        raise UserError(f"{name!r} is damaged: {prefix}{FIRST} is no convolution. Download it again.")
    require_four(shape[1], name)


def require_four(channels: int, name: str):
    if channels != 4:
        raise UserError(f"{name!r} is an inpainting or otherwise extended model ({channels} input channels). "
                        "Choose the ordinary model of its family.")


def _other_objective(name: str, kind: str) -> UserError:
    return UserError(f"{name!r} is a model of another kind: {kind}. Trained as one that predicts noise (epsilon) or v, its "
                     "images would break. Choose an ordinary SD 1.x, SD 2.x or SDXL model.")


def _prediction(weights: Weights, prefix: str, family: str, tensors: Mapping[str, dict],
                metadata: Mapping[str, str]) -> PredictionType:
    """Epsilon or v: from the marker tensor, the metadata, or for SD 2.x from a weight whose spread tells them apart
    (the rule ComfyUI uses: above 0.09 in one norm's bias means v)."""
    if "v_pred" in tensors:
        return "v_prediction"
    stated = metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated.startswith("v"):
        return "v_prediction"
    bias = prefix + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if family == "sd2" and not stated and bias in weights and 1 < weights.entries[bias].bytes < LONGEST_BIAS:
        return "v_prediction" if weights.weight(bias).std() > V_SPREAD else "epsilon"
    return "epsilon"
