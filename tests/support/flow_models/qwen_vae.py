"""Families whose images are latents of Qwen-Image's autoencoder."""
import torch
from diffusers import AutoencoderKLQwenImage

from .. import tiny_vaes
from .flow_model import FlowModel


class QwenVae(FlowModel):
    vae_class = AutoencoderKLQwenImage

    def vae(self):
        return tiny_vaes.make_vae("qwen")

    def latents(self, vae, pixels):
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (vae.config.latents_mean, vae.config.latents_std))
        return (vae.encode(pixels.unsqueeze(2)).latent_dist.mode().squeeze(2) - mean) / deviation
