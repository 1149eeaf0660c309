"""Finds out what a model file is, from headers and configs alone: no weights are loaded. Every family is asked."""
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from ..artifacts.tensor_header import gguf_refusal, read_header
from ..errors import UserError
from ..spec import BaseModelSpec
from ..spec.base_model import PredictionType
from . import FAMILIES
from .component_configs import config_file
from .component_recognition import components_of
from .model_parts import ModelSource
from .separate_files import held_in_words
from .sizes import unpacked_configs

PredictionChoice = PredictionType | Literal["auto"]
DENOISER = "model.diffusion_model."


def recognize(path: str, name: str, prediction: PredictionChoice = "auto", configs: str = "",
              others: Sequence[str] = ()) -> BaseModelSpec:
    """What is at `path`, or a UserError that says why it is no base: a .safetensors checkpoint, a diffusers folder, or a
    denoiser alone, of which `others` are the files with the text encoders and the VAE.

    `prediction` other than "auto" overrides what the file says about epsilon or v-prediction.
    """
    location = Path(path)
    source = ModelSource(location, name, configs, tuple(map(Path, others)))
    for file in [location, *source.others]:
        _require_readable(file, name)
    if location.is_file():
        tensors, metadata = read_header(location)
        if any(".lora_" in key or ".hada_" in key or ".lokr_" in key for key in tensors):
            raise UserError(f"{name!r} is a LoRA, not a checkpoint. Choose the full model that it was made for.")
        source = ModelSource(location, name, configs or unpacked_configs(metadata), source.others)
    for family in FAMILIES.values():
        found = family.recognize(source)
        if found is not None:
            prediction_type = found.prediction_type if prediction == "auto" else prediction
            base = BaseModelSpec(
                family=family.name, path=str(location), name=name, layout=source.layout, prediction_type=prediction_type,
                fingerprint=fingerprint(found.files, location), components=found.components, configs=source.configs,
                storage=found.storage, zero_terminal_snr=found.zero_terminal_snr and prediction_type == "v_prediction",
            )
            return base.model_copy(update={"multiple": family.latent_format(base).multiple})
    raise _unknown(source)


def _require_readable(file: Path, name: str):
    if not file.exists():
        raise UserError(f"The base model {name!r} is not there. Refresh the node list and choose it again.")
    if file.suffix.lower() == ".gguf":
        raise gguf_refusal(name)
    if file.is_file() and file.suffix.lower() not in (".safetensors", ".sft"):
        raise UserError(f"{name!r} is a {file.suffix or 'nameless'} file. Only .safetensors checkpoints are "
                        "read, because other formats can run code; convert it first.")


def _unknown(source: ModelSource) -> UserError:
    if source.path.is_dir():
        configs = [f"{component}/{config_file(component)}" for component in ("unet", "scheduler")]
        missing = next((config for config in configs if not (source.path / config).is_file()), "model_index.json")
        return UserError(f"The folder {source.name!r} is not a diffusers model: {missing} is missing.")
    held = components_of(read_header(source.path)[0])
    if any(each.kind == "denoiser" for each in held):
        return UserError(f"{source.name!r} holds {held_in_words(held)} alone. Put it into models/diffusion_models and use "
                         "the node Base Model from Parts, which takes each part from its own file.")
    if held:
        return UserError(f"{source.name!r} holds {held_in_words(held)}, and no denoiser. Choose a full checkpoint.")
    return UserError(f"{source.name!r} is not a Stable Diffusion checkpoint: it holds no {DENOISER}… weights.")


def fingerprint(files: Iterable[Path], root: Path) -> str:
    """Changes when a file is replaced. Names, sizes and times, because hashing gigabytes would delay every queue."""
    stats = [(str(file.relative_to(root)) if file.is_relative_to(root) and file != root else file.name, file.stat())
             for file in files]
    content = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def fingerprint_of(path: Path) -> str:
    """Changes when anything of a model file or of a diffusers folder does; for lists, before it is known what it is."""
    files = [file for file in sorted(path.glob("*/*")) if file.is_file()] if path.is_dir() else [path]
    return fingerprint(files, path)


def prediction_type_of(path: Path) -> str:
    """What a checkpoint or diffusers folder of any family says that it predicts: "epsilon", "v_prediction", or words."""
    if path.is_dir():
        return recognize(str(path), path.name).prediction_type
    tensors, metadata = read_header(path)
    said = (family.prediction_type_of(path, tensors, metadata) for family in FAMILIES.values())
    return next((each for each in said if each), "epsilon")
