"""Proof that a finished file loads: the host's own loaders are asked, without weights where that is possible."""
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace

import comfy.ldm.models.autoencoder
import comfy.lora
import torch
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

from ...trainers.artifacts.layer_names import is_text
from ...trainers.families.component_configs import read_config
from .detection import (
    Part,
    Refused,
    described_denoiser,
    detected_denoiser,
    detected_parts,
    host_refusal,
    other_shapes,
    silence,
    stored_shapes,
    under,
)
from .host_families import HOST_FAMILIES
from .native import host_model, host_text_options, host_vae_config

TEXT = "text_encoders."
"""Before the names of text encoders in all-in-one files, which are those in ComfyUI's CLIP."""
OPTIONAL = (".logit_scale", ".transformer.text_projection.weight", "norm_final.weight")
"""What the host's own loader does without: it warns of other missing weights only. The last one is in older versions' class
of Z-Image, which never asks it."""


def unmatched_keys(lora: dict, family: str, unet_config: dict, text_config: dict, sizes: bool = True) -> list[str]:
    """Keys of a LoRA that the host would leave unloaded, or could not add to its weights, for a base with these diffusers
    and transformers configs.

    The host's own model classes are built on the meta device (names and shapes, no memory), its own loader is asked, and
    its own patches are put on those shapes. Without `sizes` the configs tell the layers' names only.
    """
    _, denoiser = host_model(unet_config, family, {}, device="meta")
    text = _text_model(family, text_config) if any(map(is_text, lora)) else None
    return _unmatched(lora, denoiser, text, sizes)


def unmatched_native_keys(lora: dict, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The same for a model that the host detects by its tensors, of whichever size: `shapes` by their names in a file.
    Layers of text encoders that the file does not hold are not asked for. Raises Refused."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    text = {name.removeprefix(TEXT): tensor for name, tensor in tensors.items() if name.startswith(TEXT)}
    asked = {key: tensor for key, tensor in lora.items() if text or not is_text(key)}
    return _unmatched(asked, detected_denoiser(tensors), SimpleNamespace(state_dict=lambda: text), sizes=True)


def _unmatched(lora: dict, denoiser, text, sizes: bool) -> list[str]:
    """`text` is asked for the names and shapes of its weights alone."""
    key_map, weights = comfy.lora.model_lora_keys_unet(denoiser, {}), denoiser.state_dict()
    if text is not None:
        key_map, weights = comfy.lora.model_lora_keys_clip(text, key_map), {**weights, **text.state_dict()}
    patches = comfy.lora.load_lora(dict(lora), key_map, log_missing=False)
    # An adapter remembers every key that the host has taken up to it.
    loaded = set().union(*(patch.loaded_keys for patch in patches.values()))
    unfit = {target for target, patch in patches.items() if sizes and not _fits(patch, target, weights)}
    names = tuple(f"{name}." for name, target in key_map.items() if target in unfit)
    return sorted({*(set(lora) - loaded), *(key for key in lora if key.startswith(names))})


def _fits(patch, target: str | tuple, weights: dict[str, torch.Tensor]) -> bool:
    """Whether the host can add a patch to its weight. It only logs where shapes differ, so its errors are listened to."""
    name, offset = (target, None) if isinstance(target, str) else target[:2]
    if name not in weights:
        return False
    errors = _Errors()
    logging.root.addHandler(errors)
    try:
        comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, None)], torch.empty_like(weights[name]), name)
    except RuntimeError:
        return False
    finally:
        logging.root.removeHandler(errors)
    return not errors.count


class _Errors(logging.Handler):
    """Counts what the host logs as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.count = 0

    def emit(self, record):
        self.count += 1


def unloaded_widths(hypernetwork: Path, widths: Iterable[int]) -> list[str]:
    """Those of a hypernetwork file's widths that the host would not act on. It refuses a file with no more than a line in
    its log, so it is asked for the patch that HypernetworkLoader would set."""
    try:
        patch = load_hypernetwork_patch(str(hypernetwork), 1.0)
    except RuntimeError:  # how load_state_dict says that shapes differ
        patch = None
    return [f"width {width}" for width in widths if patch is None or not _acts(patch, width)]


def _acts(patch, width: int) -> bool:
    """Whether the host's patch gives finite keys and values of the right shape for a width."""
    networks = patch.hypernet.get(width, ())
    if len(networks) != 2:
        return False
    keys = torch.randn((1, 4, width), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            found = patch(keys, keys, keys, {})[1:]
    except RuntimeError:
        return False
    return all(each.shape == keys.shape and bool(torch.isfinite(each).all()) for each in found)


def _text_model(family: str, config: dict):
    """The host's text encoders as shapes."""
    own = HOST_FAMILIES[family]
    options = host_text_options(config) if own.any_size else {}
    return own.text_model(device="meta", dtype=torch.float32, model_options=options)


def unmatched_tensors(files: list[Path], base_files: list[Path], family: str, configs: Path,
                      alone: bool = False) -> list[str]:
    """What is wrong with a checkpoint for the host: tensors that its models miss in the file, do not know, or have in
    another shape. Its models are those that it detects from the file, as Load Checkpoint does; for sizes that it does not
    detect those that `native.load_checkpoint` builds from these diffusers and transformers configs.

    `alone`: the file holds a denoiser and nothing else. Only headers are read. What was wrong with the base's own single
    file already was loaded then, and is now.
    """
    if alone:
        try:
            return _differences("denoiser", _denoiser_alone(stored_shapes(files)))
        except Refused as reason:
            return [f"denoiser: {reason}"]
    before = set(_problems(base_files, family, configs) if base_files else [])
    return [problem for problem in _problems(files, family, configs) if problem not in before]


def _denoiser_alone(tensors: dict[str, torch.Tensor]) -> Part:
    with silence():
        prefix, config, model = described_denoiser(tensors)
    return Part(model.diffusion_model.state_dict(), config.process_unet_state_dict(under(prefix, tensors)))


def _problems(files: list[Path], family: str, configs: Path) -> list[str]:
    parts = _built_parts(files, family, configs) if host_refusal(files) else detected_parts(files)
    return [each for name, part in parts.items() for each in _differences(name, part)]


def _built_parts(files: list[Path], family: str, configs: Path) -> dict[str, Part]:
    """The parts that the pack builds itself, for sizes that the host does not detect."""
    if (configs / "transformer").is_dir():
        return _parts_of_transformer(stored_shapes(files), configs)
    config = {part: read_config(configs, part, configs.name) for part in ("unet", "vae", "text_encoder")}
    model_config, model = host_model(config["unet"], family, {}, device="meta")
    with torch.device("meta"):
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig=host_vae_config(config["vae"]), embed_dim=config["vae"]["latent_channels"])
    tensors = stored_shapes(files)
    return {
        "UNet": Part(model.diffusion_model.state_dict(), under("model.diffusion_model.", tensors)),
        "VAE": Part(vae.state_dict(), under("first_stage_model.", tensors)),
        "text encoder": Part(_text_model(family, config["text_encoder"]).state_dict(),
                             model_config.process_clip_state_dict(dict(tensors))),
    }


def _parts_of_transformer(tensors: dict[str, torch.Tensor], configs: Path) -> dict[str, Part]:
    """The host detects the denoiser of every size; what it cannot know are those of the VAE and of the text encoder."""
    prefix, found, denoiser = described_denoiser(tensors)
    text, config = found.clip_target(state_dict=tensors), read_config(configs, "vae", configs.name)
    options = host_text_options(read_config(configs, "text_encoder", configs.name))
    with torch.device("meta"):
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig=host_vae_config(config), embed_dim=config["latent_channels"]).state_dict()
    unused = () if config.get("use_quant_conv", True) else ("quant_conv.", "post_quant_conv.")
    vae_prefix = found.vae_key_prefix[0]
    return {
        "denoiser": Part(denoiser.diffusion_model.state_dict(), found.process_unet_state_dict(under(prefix, tensors))),
        "VAE": Part({name: tensor for name, tensor in vae.items() if not name.startswith(unused)},
                    under(vae_prefix, tensors)),
        "text encoder": Part(
            text.clip(**text.params, device="meta", dtype=torch.float32, model_options=options).state_dict(),
            found.process_clip_state_dict(dict(tensors))),
    }


def _differences(name: str, part: Part) -> list[str]:
    return [
        *(f"{name}: {each} is missing" for each in part.wanted if each not in part.found and not each.endswith(OPTIONAL)),
        *(f"{name}: {each} is not known" for each in part.found if each not in part.wanted),
        *(f"{name}: {each} has another shape" for each in other_shapes(part)),
    ]
