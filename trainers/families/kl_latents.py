"""Latents of an `AutoencoderKL`, whose config says how they are shifted and scaled: most families have one."""
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..spec import BaseModelSpec
from . import component_loading
from .component_configs import component_config
from .model_parts import ModelParts
from .protocol import LatentFormat

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

TILE = 512
"""Side in pixels of the tiles in which a VAE works where memory does not hold a whole image; they overlap by a quarter."""
LIBRARY_FIELDS = ("torch_dtype", "dtype", "transformers_version")
"""Of configs: with what they were written."""


class KlLatents:
    """What a family offers for its images. `patch` is the side, in latents, of the denoiser's patches."""

    name: str
    patch = 1

    def latent_format(self, base: BaseModelSpec) -> LatentFormat:
        config = component_config(base, "vae")
        downscale = 2 ** (len(config["block_out_channels"]) - 1)
        return LatentFormat(
            channels=config["latent_channels"],
            scale=config.get("scaling_factor", 0.18215),
            shift=config.get("shift_factor") or 0.0,
            downscale=downscale,
            multiple=downscale * self.patch,
        )

    def latent_identity(self, base: BaseModelSpec, memory: Path) -> Sequence:
        return [self.name, asdict(self.latent_format(base)), *content_of(base, memory, ["vae"])]

    def load_vae(self, base: BaseModelSpec) -> "AutoencoderKL":
        return component_loading.load_vae(base)

    @torch.no_grad()
    def encode_images(self, vae: "AutoencoderKL", pixels: Tensor, latent_format: LatentFormat) -> Tensor:
        """The mode of the posterior: its spread is a hundredth of the latents', and the mode can be cached."""
        posterior = whole_or_tiled(vae, lambda: vae.encode(pixels, return_dict=False)[0], latent_format.downscale)
        return (posterior.mode() - latent_format.shift) * latent_format.scale

    @torch.no_grad()
    def decode_latents(self, vae: "AutoencoderKL", latents: Tensor, latent_format: LatentFormat) -> Tensor:
        latents = latents / latent_format.scale + latent_format.shift
        found = whole_or_tiled(vae, lambda: vae.decode(
            latents, return_dict=False),  # pyright: ignore[reportArgumentType]  # any Tensor, not FloatTensor
            latent_format.downscale)
        return found[0].clamp(-1, 1)


Result = TypeVar("Result")


def whole_or_tiled(vae: "AutoencoderKL", work: Callable[[], Result], downscale: int) -> Result:
    """What `work` does with the VAE; again in tiles, from then on, when the memory is full. Tiles know nothing of each
    other, so that latents differ a little from those of whole images; what fits is never cut."""
    try:
        return work()
    except torch.OutOfMemoryError:
        if vae.use_tiling:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // downscale
    return work()


def content_of(base: BaseModelSpec, memory: Path, components: Sequence[str]) -> Sequence:
    """Weights and configs of components, without what libraries note in configs for themselves. `memory` is the folder that
    remembers fingerprints."""
    parts = ModelParts.of(base)
    return [[parts[name].fingerprint(memory), {
        field: value for field, value in component_config(base, name).items() if not field.startswith("_")
        and field not in LIBRARY_FIELDS}] for name in components]
