"""Latents of an `AutoencoderKL`, whose config says how they are shifted and scaled: most families have one. Those of other
autoencoders (`flux2_latents`, `qwen_latents`) differ in some of its functions."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import torch
from torch import Tensor

from ..artifacts.tensor_files import Entry, entry_of
from ..errors import UserError
from ..spec import BaseModelSpec
from . import component_loading
from .checkpoint_writing import vae_pieces
from .component_configs import CLASS_FIELDS, component_config
from .component_recognition import Kind
from .model_parts import ModelParts
from .protocol import LatentFormat
from .sizes import VAE

Autoencoder: TypeAlias = Any
"""One of diffusers' autoencoders: they have no type in common that says how they encode."""
Result = TypeVar("Result")
TILE = 512
"""Side in pixels of the tiles in which a VAE works where memory does not hold a whole image; they overlap by a quarter."""
LIBRARY_FIELDS = ("torch_dtype", "dtype", "transformers_version")
"""Of configs: with what they were written."""


class KlLatents:
    """What a family offers for its images. `patch` is the side, in latents, of the denoiser's patches."""

    name: str
    patch = 1
    vae_kind: ClassVar[Kind] = "vae"
    vae_class: ClassVar[str] = "AutoencoderKL"
    """diffusers' class of the autoencoder."""
    vae_channels: ClassVar[int] = 0
    """Of the autoencoder; 0: any."""

    def vae_config(self, base: BaseModelSpec) -> dict:
        config = component_config(base, "vae")
        found = config.get("_class_name", self.vae_class)
        if found != self.vae_class and {found, self.vae_class} & CLASS_FIELDS.keys():
            raise UserError(f"{base.name!r} has another VAE than models of its family: vae/config.json says {found}, and "
                            f"{self.vae_class} belongs there. Download the model again.")
        return config

    def vae_width(self, base: BaseModelSpec) -> int:
        """Channels of its first layer."""
        return self.vae_config(base)["block_out_channels"][0]

    def latent_format(self, base: BaseModelSpec) -> LatentFormat:
        config = self.vae_config(base)
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

    def load_vae(self, base: BaseModelSpec) -> Autoencoder:
        return component_loading.load_vae(base)

    def vae_entries(self, base: BaseModelSpec) -> Mapping[str, Entry]:
        """Its tensors under the names of the original file, as all-in-one files have them behind a prefix."""
        return {name.removeprefix(VAE): entry_of(name, pieces) for name, pieces in vae_pieces(self.load_vae(base)).items()}

    @torch.no_grad()
    def encode_images(self, vae: Autoencoder, pixels: Tensor, latent_format: LatentFormat) -> Tensor:
        """The mode of the posterior: its spread is a hundredth of the latents', and the mode can be cached."""
        posterior = self.whole_or_tiled(
            vae, lambda: vae.encode(pixels, return_dict=False)[0], latent_format.downscale)
        return (posterior.mode() - latent_format.shift) * latent_format.scale

    @torch.no_grad()
    def decode_latents(self, vae: Autoencoder, latents: Tensor, latent_format: LatentFormat) -> Tensor:
        latents = latents / latent_format.scale + latent_format.shift
        found = self.whole_or_tiled(vae, lambda: vae.decode(latents, return_dict=False), latent_format.downscale)
        return found[0].clamp(-1, 1)

    def whole_or_tiled(self, vae: Autoencoder, work: Callable[[], Result], downscale: int) -> Result:
        """What `work` does with the VAE; again in tiles, from then on, when the memory is full. Tiles know nothing of each
        other, so that latents differ a little from those of whole images; what fits is never cut. `downscale` is that of
        the VAE."""
        try:
            return work()
        except torch.OutOfMemoryError:
            if vae.use_tiling:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.use_tiles(vae, TILE, downscale)
        return work()

    def use_tiles(self, vae: Autoencoder, side: int, downscale: int):
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // downscale


def content_of(base: BaseModelSpec, memory: Path, components: Sequence[str]) -> Sequence:
    """Weights and configs of components, without what libraries note in configs for themselves. `memory` is the folder that
    remembers fingerprints."""
    parts = ModelParts.of(base)
    return [[parts[name].fingerprint(memory), {
        field: value for field, value in component_config(base, name).items() if not field.startswith("_")
        and field not in LIBRARY_FIELDS}] for name in components]
