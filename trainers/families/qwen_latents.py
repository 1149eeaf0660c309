"""Latents of the autoencoders of Qwen-Image and Qwen-Image-2.1: those of Wan's video models, used with one frame, with mean
and deviation of each channel in the config. Krea 2 and Anima have Qwen-Image's."""
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.tensor_files import Entry
from ..artifacts.wan_layout import wan_vae_places
from ..errors import UserError
from ..spec import BaseModelSpec
from .kl_latents import Autoencoder, KlLatents
from .protocol import LatentFormat
from .vae_filling import VaeFiles


class QwenLatents(KlLatents):
    """What families with Qwen-Image's autoencoder offer for their images; first of a family's bases."""

    vae_kind, vae_class, vae_channels = "qwen_vae", "AutoencoderKLQwenImage", 16

    def vae_config(self, base: BaseModelSpec) -> dict:
        config = super().vae_config(base)
        if not len(config["latents_mean"]) == len(config["latents_std"]) == config["z_dim"]:
            raise UserError(f"{base.name!r} is damaged: latents_mean and latents_std in vae/config.json must have a number "
                            f"for each of {config['z_dim']} channels. Download the model again.")
        return config

    def vae_width(self, base: BaseModelSpec) -> int:
        return self.vae_config(base)["base_dim"]

    def latent_format(self, base: BaseModelSpec) -> LatentFormat:
        config = self.vae_config(base)
        downscale = 2 ** (len(config["dim_mult"]) - 1)
        return LatentFormat(config["z_dim"], 1.0, downscale=downscale, multiple=downscale * self.patch)

    def vae_type(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
        return AutoencoderKLQwenImage

    def load_vae(self, base: BaseModelSpec) -> Autoencoder:
        vae = self._vae_files(base).load(base)
        _see_one_frame(vae)
        return vae

    def vae_entries(self, base: BaseModelSpec) -> Mapping[str, Entry]:
        return self._vae_files(base).original(base)

    def _vae_files(self, base: BaseModelSpec) -> VaeFiles:
        config = self.vae_config(base)
        return VaeFiles(lambda: _of_images(self.vae_type()).from_config(config), wan_vae_places, {})

    def opaque(self, pixels: Tensor) -> Tensor:
        """Images with the channels that the VAE takes."""
        return pixels

    @torch.no_grad()
    def encode_images(self, vae: Autoencoder, pixels: Tensor, latent_format: LatentFormat) -> Tensor:
        frames = self.opaque(pixels).unsqueeze(2)
        posterior = self.whole_or_tiled(
            vae, lambda: vae.encode(frames, return_dict=False)[0], latent_format.downscale)
        mean, deviation = _statistics(vae, pixels)
        return (posterior.mode()[:, :, 0] - mean) / deviation

    @torch.no_grad()
    def decode_latents(self, vae: Autoencoder, latents: Tensor, latent_format: LatentFormat) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        frames = (latents * deviation + mean).unsqueeze(2)
        found = self.whole_or_tiled(
            vae, lambda: vae.decode(frames, return_dict=False)[0], latent_format.downscale)
        return found[:, :3, 0].clamp(-1, 1)

    def use_tiles(self, vae: Autoencoder, side: int, downscale: int):
        vae.enable_tiling(side, side, 3 * side // 4, 3 * side // 4)


class Qwen21Latents(QwenLatents):
    """The same of Qwen-Image-2.1, whose VAE knows transparency: images are opaque. `patch` is 2 because the denoiser counts
    squares of 2 × 2 latents as one place."""

    patch = 2
    vae_kind, vae_class, vae_channels = "qwen_21_vae", "AutoencoderKLQwenImage21", 64

    def vae_type(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import AutoencoderKLQwenImage21
        return AutoencoderKLQwenImage21

    def opaque(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)


def _of_images(video: Any) -> Any:
    """A class of diffusers without a memory: what goes into each of its layers is not kept for frames to come, which takes
    twice the memory."""
    class Images(video):
        def clear_cache(self):
            super().clear_cache()
            self._feat_map = self._enc_feat_map = None
    return Images


def _see_one_frame(vae: nn.Module):
    """Keep of kernels over three frames what sees the last one: before a first frame lie zeros. Half the time, a third of
    the weights."""
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d

    class OneFrame(QwenImageCausalConv3d):
        def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
            return nn.Conv3d.forward(self, x)

    for module in vae.modules():
        if type(module) is QwenImageCausalConv3d:
            module.__class__ = OneFrame
            module.weight = nn.Parameter(module.weight[:, :, -1:].clone(), requires_grad=False)
            module.padding = (0, module.kernel_size[1] // 2, module.kernel_size[2] // 2)


def _statistics(vae: Autoencoder, like: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of latents, [1, channels, 1, 1]."""
    mean, deviation = (torch.tensor(each, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
                       for each in (vae.config.latents_mean, vae.config.latents_std))
    return mean, deviation
