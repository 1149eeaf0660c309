"""Tiny random autoencoders of the kinds that are not Stable Diffusion's, as diffusers folders and as the original files."""
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLQwenImage21
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.ldm_layout import original_vae_places
from finetune.trainers.artifacts.wan_layout import wan_vae_places
from finetune.trainers.families.flux2_latents import Flux2Latents
from finetune.trainers.families.kl_latents import KlLatents
from finetune.trainers.families.qwen_latents import Qwen21Latents, QwenLatents
from safetensors.torch import save_file

KINDS = ("flux2", "qwen", "qwen21")
PLACES = {"flux2": original_vae_places, "qwen": wan_vae_places, "qwen21": wan_vae_places}
LATENTS = {"flux2": Flux2Latents, "qwen": QwenLatents, "qwen21": Qwen21Latents}
FAMILIES = {"flux2": "flux2", "qwen": "qwen_image", "qwen21": "qwen_image_21"}
GROUPS = 32
"""Groups of FLUX.2's norms, which ComfyUI does not ask about."""


def make_vae(kind: str, channels: int | None = None) -> torch.nn.Module:
    """Norms and statistics differ from 1 and 0, so that a lost one shows. Latents have as many channels as the released
    model's, or `channels`."""
    torch.manual_seed(2)
    if kind == "flux2":
        vae = AutoencoderKLFlux2(block_out_channels=(GROUPS,) * 4, layers_per_block=1, norm_num_groups=GROUPS,
                                 latent_channels=channels or 32, sample_size=64)
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
    elif kind == "qwen":
        vae = AutoencoderKLQwenImage(base_dim=4, **_statistics(channels or 16))
    else:
        vae = AutoencoderKLQwenImage21(base_dim=4, decoder_base_dim=6, **_statistics(channels or 64))
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if parameter.ndim == 1 or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return vae.eval()


def _statistics(channels: int) -> dict:
    return dict(z_dim=channels, latents_mean=torch.randn(channels).tolist(),
                latents_std=torch.empty(channels).uniform_(0.5, 3).tolist())


def original_weights(kind: str, vae: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Under the names and in the shapes of the files that people have."""
    weights = vae.state_dict()
    places = PLACES[kind]({name: tuple(tensor.shape) for name, tensor in weights.items()})
    return {place.name: weights[name].reshape(place.shape).clone() for name, place in places.items()}


def make_file(kind: str, path: Path, vae: torch.nn.Module, prefix: str = "", dtype=torch.float32) -> Path:
    save_file({prefix + name: tensor.to(dtype) if tensor.is_floating_point() else tensor
               for name, tensor in original_weights(kind, vae).items()}, path)
    return path


def latents_of(kind: str) -> KlLatents:
    """A family with nothing but its images; the denoisers of most have patches of 2."""
    class Patched(KlLatents):
        patch = 2

    class Images(LATENTS[kind], Patched):
        name = kind
    return Images()


def base_of(kind: str, path: Path, configs: str | Path = "", prefix: str = "") -> specs.BaseModelSpec:
    """A base that holds an autoencoder alone: a file, or a diffusers folder with it."""
    part = path / "vae" if path.is_dir() else path
    return specs.BaseModelSpec(
        family=FAMILIES[kind], path=str(path), name="tiny", layout="diffusers" if path.is_dir() else "separate_files",
        prediction_type="flow", fingerprint="", configs=str(configs),
        components=(specs.ComponentSpec(name="vae", path=str(part), prefix=prefix),))
