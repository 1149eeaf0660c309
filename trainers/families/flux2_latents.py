"""Latents of FLUX.2's autoencoder: patches of 2 × 2 as channels, normalized by statistics that lie in its weights. FLUX 3
has the same."""
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..artifacts.ldm_layout import original_vae_places
from ..artifacts.tensor_files import Entry
from ..spec import BaseModelSpec
from .kl_latents import Autoencoder, KlLatents
from .model_parts import ModelParts
from .protocol import LatentFormat
from .vae_filling import VaeFiles

PATCH = 2
QUANT_CONVS = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
"""The original code has them inside encoder and decoder; ComfyUI reads both."""


class Flux2Latents(KlLatents):
    """What families with FLUX.2's autoencoder offer for their images; first of a family's bases."""

    patch = 1  # the denoiser takes latents as they are
    vae_kind, vae_class, vae_channels = "flux2_vae", "AutoencoderKLFlux2", 32

    def latent_format(self, base: BaseModelSpec) -> LatentFormat:
        config = self.vae_config(base)
        downscale = PATCH * 2 ** (len(config["block_out_channels"]) - 1)
        return LatentFormat(PATCH**2 * config["latent_channels"], 1.0, downscale=downscale, multiple=downscale * self.patch)

    def load_vae(self, base: BaseModelSpec) -> Autoencoder:
        return self._vae_files(base).load(base)

    def vae_entries(self, base: BaseModelSpec) -> Mapping[str, Entry]:
        return self._vae_files(base).original(base)

    def _vae_files(self, base: BaseModelSpec) -> VaeFiles:
        config = self.vae_config(base)
        first = ModelParts.of(base)["vae"].entries().get("decoder.conv_in.weight")
        widths = config["block_out_channels"]
        if first is not None and first.shape[0] != widths[-1] and not config.get("decoder_block_out_channels"):
            # There is a variant with a narrower decoder, which a file tells by its shapes alone.
            config["decoder_block_out_channels"] = [width * first.shape[0] // widths[-1] for width in widths]

        def make() -> Autoencoder:
            from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
            return AutoencoderKLFlux2.from_config(config)
        return VaeFiles(make, original_vae_places, QUANT_CONVS)

    @torch.no_grad()
    def encode_images(self, vae: Autoencoder, pixels: Tensor, latent_format: LatentFormat) -> Tensor:
        """Channels in the order (channel, row of the patch, column of the patch)."""
        posterior = self.whole_or_tiled(
            vae, lambda: vae.encode(pixels, return_dict=False)[0], latent_format.downscale // PATCH)
        mean, deviation = _statistics(vae)
        return (F.pixel_unshuffle(posterior.mode(), PATCH) - mean) / deviation

    @torch.no_grad()
    def decode_latents(self, vae: Autoencoder, latents: Tensor, latent_format: LatentFormat) -> Tensor:
        mean, deviation = _statistics(vae)
        raw = F.pixel_shuffle(latents * deviation + mean, PATCH)
        found = self.whole_or_tiled(
            vae, lambda: vae.decode(raw, return_dict=False)[0], latent_format.downscale // PATCH)
        return found.clamp(-1, 1)


def _statistics(vae: Autoencoder) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of latents, [1, channels, 1, 1]."""
    mean, variance = (each.view(1, -1, 1, 1) for each in (vae.bn.running_mean, vae.bn.running_var))
    return mean, (variance + vae.config.batch_norm_eps).sqrt()
