"""What the host's own loaders would make of a model's files: its detection is asked with the shapes from their headers,
and its model classes are built on the meta device, which takes no memory."""
import logging
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_detection
import comfy.sd
import comfy.utils
import torch

from ...trainers.artifacts.tensor_files import read_entries
from ...trainers.families.weight_files import weight_files

UNKNOWN_SIZE = "it has no model of this size"


class Refused(Exception):
    """The host's loaders would not load this; says why, as the end of a sentence about ComfyUI."""


class Part(NamedTuple):
    """One part of a model, as name → tensor without numbers."""

    wanted: dict[str, torch.Tensor]
    """What the host's model class has."""
    found: dict[str, torch.Tensor]
    """What the files give it."""


@contextmanager
def silence():
    """The host says what it cannot detect in its log, where a person would take an ordinary question for an error."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def stored_shapes(files: list[Path]) -> dict[str, torch.Tensor]:
    """The tensors of safetensors files on the meta device. Those with one axis are read, because the host looks into some
    to tell what a model predicts."""
    entries = {name: entry for path in files for name, entry in read_entries(path).items()}
    return {name: entry.tensor() if len(entry.shape) <= 1 else torch.empty(entry.shape, dtype=entry.dtype, device="meta")
            for name, entry in entries.items()}


def detected_parts(files: list[Path]) -> dict[str, Part]:
    """The parts that Load Checkpoint would make of files in the original layout: "UNet", "VAE", "text encoder", by the
    steps of the host's `load_state_dict_guess_config`. Raises Refused."""
    with silence():
        return _detected_parts(stored_shapes(files))


def detected_denoiser(tensors: dict[str, torch.Tensor]):
    """The host's model for the tensors of a file, on the meta device. Raises Refused, also for a size that the host does
    not see and has no model of."""
    with silence():
        prefix, config, model = described_denoiser(tensors)
        found = config.process_unet_state_dict(under(prefix, tensors))
    if other_shapes(Part(model.diffusion_model.state_dict(), found)):
        raise Refused(UNKNOWN_SIZE)
    return model


def described_denoiser(tensors: dict[str, torch.Tensor]) -> tuple[str, Any, Any]:
    """(what stands before the denoiser's names, the host's description of the model, the model)"""
    prefix = comfy.model_detection.unet_prefix_from_state_dict(tensors)
    prefix = prefix if any(name.startswith(prefix) for name in tensors) else ""
    # The host's class of all configs lacks clip_target, which those in its list have.
    config: Any = comfy.model_detection.model_config_from_unet(tensors, prefix)
    if config is None:
        raise Refused(UNKNOWN_SIZE)
    config.set_inference_dtype(torch.float32, None)
    try:
        return prefix, config, config.get_model(tensors, prefix, device="meta")
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        # What it derives of a size that it does not know does not fit together; its classes say so as they like.
        raise Refused(UNKNOWN_SIZE) from None


def _detected_parts(tensors: dict[str, torch.Tensor]) -> dict[str, Part]:
    prefix, config, model = described_denoiser(tensors)
    parts = {"UNet": Part(model.diffusion_model.state_dict(), config.process_unet_state_dict(under(prefix, tensors)))}
    prefixes = {each: "" for each in config.vae_key_prefix}
    vae = comfy.utils.state_dict_prefix_replace(dict(tensors), prefixes, filter_keys=True)
    vae = config.process_vae_state_dict(vae)
    parts["VAE"] = Part(host_vae(vae).state_dict(), vae)
    target = config.clip_target(state_dict=tensors)
    text = config.process_clip_state_dict(dict(tensors))
    if target is None or not text:
        raise Refused("it finds no text encoder in it")
    parts["text encoder"] = Part(
        target.clip(**target.params, device="meta", dtype=torch.float32, model_options={}).state_dict(), text)
    return parts


def host_vae(tensors: dict[str, torch.Tensor]):
    """The module that the host chooses for the tensors of a VAE. Raises Refused."""
    try:
        with torch.device("meta"):
            vae = comfy.sd.VAE(sd=dict(tensors), device=torch.device("meta"))
    except RuntimeError:  # how load_state_dict says that shapes differ
        raise Refused(f"{UNKNOWN_SIZE} (VAE)") from None
    if vae.first_stage_model is None:
        raise Refused("it finds no VAE in it")
    return vae.first_stage_model


def host_refusal(files: list[Path]) -> str:
    """Why Load Checkpoint would not load files in the original layout; empty when it would."""
    try:
        parts = detected_parts(files)
    except Refused as reason:
        return str(reason)
    wrong = next((name for name, part in parts.items() if other_shapes(part)), None)
    return f"{UNKNOWN_SIZE} ({wrong})" if wrong else ""


def folder_refusal(folder: Path) -> str:
    """Why the host's loader of diffusers folders would not load one; empty when it would."""
    unet, vae = (stored_shapes(weight_files(folder, part, folder.name).files) for part in ("unet", "vae"))
    with silence():
        if comfy.model_detection.model_config_from_diffusers_unet(unet) is None:
            return UNKNOWN_SIZE
        try:
            host_vae(vae)
        except Refused as reason:
            return str(reason)
    return ""


def other_shapes(part: Part) -> list[str]:
    return [name for name, tensor in part.wanted.items()
            if name in part.found and part.found[name].shape != tensor.shape]


def under(prefix: str, tensors: dict) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
