"""Proof that a finished file loads: the host's own loaders are asked, without weights where that is possible."""
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.lora
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
import torch
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

from ...trainers.artifacts.tensor_header import read_header
from ...trainers.files import read_json
from .native import host_model, host_text_options, host_vae_config

OPTIONAL = (".logit_scale", ".transformer.text_projection.weight")
"""What the host's own loader does without: it warns of other missing weights only."""


def unmatched_keys(lora: dict, family: str, unet_config: dict, text_config: dict) -> list[str]:
    """Keys of a LoRA that the host would leave unloaded for a base with these diffusers and transformers configs.

    The host's own model classes are built on the meta device (names and shapes, no memory) and its own loader is asked.
    """
    _, denoiser = host_model(unet_config, family, {}, device="meta")
    key_map = comfy.lora.model_lora_keys_unet(denoiser, {})
    if any(key.startswith(("lora_te", "text_encoder")) for key in lora):
        key_map = comfy.lora.model_lora_keys_clip(_text_model(family, text_config), key_map)
    patches = comfy.lora.load_lora(dict(lora), key_map, log_missing=False)
    # An adapter remembers every key that the host has taken up to it.
    loaded = set().union(*(patch.loaded_keys for patch in patches.values()))
    return sorted(set(lora) - loaded)


def unloaded_widths(hypernetwork: Path, widths: list[int]) -> list[str]:
    """Those of a hypernetwork file's widths that the host would not act on. It refuses a file with no more than a line in
    its log, so it is asked for the patch that HypernetworkLoader would set."""
    patch = load_hypernetwork_patch(str(hypernetwork), 1.0)
    loaded = patch.hypernet if patch else {}
    return [f"width {width}" for width in widths if len(loaded.get(width, ())) != 2]


def _text_model(family: str, config: dict):
    """The host's text encoders as shapes."""
    text_classes = {
        "sd1": comfy.sd1_clip.SD1ClipModel, "sd2": comfy.text_encoders.sd2_clip.SD2ClipModel,
        "sdxl": comfy.sdxl_clip.SDXLClipModel,
    }
    options = host_text_options(config) if family == "sd1" else {}
    return text_classes[family](device="meta", dtype=torch.float32, model_options=options)


def unmatched_tensors(files: list[Path], base_files: list[Path], family: str, configs: Path) -> list[str]:
    """What is wrong with a checkpoint for the host: tensors that its models of these diffusers and transformers configs
    miss in the file, do not know, or have in another shape.

    Only headers are read. What was wrong with the base's own single file already was loaded then, and is now.
    """
    config = {part: read_json(configs / part / "config.json") for part in ("unet", "vae", "text_encoder")}
    model_config, model = host_model(config["unet"], family, {}, device="meta")
    with torch.device("meta"):
        vae = comfy.ldm.models.autoencoder.AutoencoderKL(
            ddconfig=host_vae_config(config["vae"]), embed_dim=config["vae"]["latent_channels"])
    wanted = {"UNet": model.diffusion_model.state_dict(), "VAE": vae.state_dict(),
              "text encoder": _text_model(family, config["text_encoder"]).state_dict()}

    def problems(paths: list[Path]) -> list[str]:
        shapes = {name: torch.empty(facts["shape"], device="meta")
                  for path in paths for name, facts in read_header(path)[0].items()}
        found = {
            part: {name.removeprefix(prefix): tensor for name, tensor in shapes.items() if name.startswith(prefix)}
            for part, prefix in (("UNet", "model.diffusion_model."), ("VAE", "first_stage_model."))
        }
        found["text encoder"] = model_config.process_clip_state_dict(dict(shapes))
        return [each for part in wanted for each in _differences(part, found[part], wanted[part])]

    before = set(problems(base_files) if base_files else [])
    return [problem for problem in problems(files) if problem not in before]


def _differences(part: str, found: dict, wanted: dict) -> list[str]:
    return [
        *(f"{part}: {name} is missing" for name in wanted if name not in found and not name.endswith(OPTIONAL)),
        *(f"{part}: {name} is not known" for name in found if name not in wanted),
        *(f"{part}: {name} has another shape" for name, tensor in wanted.items()
          if name in found and found[name].shape != tensor.shape),
    ]
