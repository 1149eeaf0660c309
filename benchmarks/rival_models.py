"""How peers load, feed and ask the denoiser of each family: what differs between families in `contenders`."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True)
class RivalModel:
    """SD 1.5, loaded from the job's checkpoint by diffusers. `targets` are the names of the layers that adapters are put
    beside, the same layers as ours."""

    channels: int = 4
    targets: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")

    def load(self, job: Mapping, dtype):
        from diffusers import UNet2DConditionModel

        from trainers.families.component_configs import CONFIGS

        unet = UNet2DConditionModel.from_single_file(
            job["checkpoint"], config=str(CONFIGS / "sd1"), subfolder="unet", torch_dtype=dtype, local_files_only=True)
        return unet.requires_grad_(False)

    def latents(self, job: Mapping, device, dtype):
        """Of one image."""
        import torch

        return torch.randn(1, self.channels, job["latent"], job["latent"]).to(device, dtype)

    def text(self, device, dtype) -> dict[str, Any]:
        """What captions say, random: by the names of the host's conditioning."""
        import torch

        return {"hidden": torch.randn(1, 77, 768).to(device, dtype)}

    def noised(self, latents):
        """(noisy latents, timesteps, target)"""
        import torch
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
        return scheduler.add_noise(latents, noise, timesteps), timesteps, noise

    def predict(self, model, noisy, timesteps, text):
        return model(noisy, timesteps, text["hidden"], return_dict=False)[0]


@dataclass(frozen=True)
class RivalSd3(RivalModel):
    """SD3 at the job's depth, with random weights of its own."""

    channels: int = 16
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    family: str = "sd3"
    tokens: int = 154
    pooled: int = 2048

    def load(self, job: Mapping, dtype):
        import torch

        from .flow_size import plain_denoiser

        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # never larger than it needs to be
        try:
            return plain_denoiser(self.family, job["depth"]).requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    def text(self, device, dtype) -> dict[str, Any]:
        import torch

        return {"hidden": torch.randn(1, self.tokens, 4096).to(device, dtype),
                "pooled": torch.randn(1, self.pooled).to(device, dtype)}

    def noised(self, latents):
        import torch

        noise, sigma = torch.randn_like(latents), torch.randn(len(latents), device=latents.device).sigmoid()
        shaped = sigma[:, None, None, None].to(latents)
        return (1 - shaped) * latents + shaped * noise, 1000 * sigma, noise - latents

    def predict(self, model, noisy, timesteps, text):
        return model(noisy, text["hidden"], text["pooled"], timesteps, return_dict=False)[0]


@dataclass(frozen=True)
class RivalFlux(RivalSd3):
    targets: tuple[str, ...] = (*RivalSd3.targets, "proj_mlp", "proj_out")
    family: str = "flux"
    tokens: int = 256
    pooled: int = 768

    def predict(self, model, noisy, timesteps, text):
        import torch
        from diffusers import FluxPipeline

        batch, channels, height, width = noisy.shape
        packed = FluxPipeline._pack_latents(noisy, batch, channels, height, width)
        places = FluxPipeline._prepare_latent_image_ids(batch, height // 2, width // 2, noisy.device, noisy.dtype)
        words = torch.zeros(text["hidden"].shape[1], 3, device=noisy.device, dtype=noisy.dtype)
        found = model(packed, text["hidden"], text["pooled"], timesteps / 1000, places, words,
                      torch.ones(batch, device=noisy.device), return_dict=False)[0]
        return FluxPipeline._unpack_latents(found, 8 * height, 8 * width, 8)


MODELS = {"sd1": RivalModel(), "sd3": RivalSd3(), "flux": RivalFlux()}
