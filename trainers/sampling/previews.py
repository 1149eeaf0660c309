"""Images drawn with the model as it is now: DPM++ 2M with classifier-free guidance (Ho & Salimans 2022)."""
from typing import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import randomness
from ..families.protocol import Conditioning, Family, LatentFormat
from ..spec import PreviewSpec

AT_ONCE = 4
"""Images in one batch of previews: more would need more memory than a training step."""


@torch.no_grad()
def draw_previews(
    family: Family, base, denoiser: nn.Module, vae: nn.Module, form: LatentFormat, spec: PreviewSpec,
    conditioning: Callable[[str], Conditioning], resolution: int, device: torch.device, zero_terminal_snr: bool = False,
) -> Iterator[list[Image.Image]]:
    """The square images of each prompt, `resolution` pixels wide. `conditioning(prompt)` gives a batch of one.

    Noise comes from (preview seed, number of the prompt, number of the image): the same every time.
    """
    negative = conditioning(spec.negative)
    for number, prompt in enumerate(spec.prompts):
        positive, images = conditioning(prompt), []
        draws = [randomness.generator(spec.seed, number, image) for image in range(spec.images)]
        for start in range(0, spec.images, AT_ONCE):
            images += draw_images(
                family, denoiser, vae, form, family.sampler(base, zero_terminal_snr), positive, negative,
                draws[start:start + AT_ONCE], spec.sampler_steps, spec.guidance, resolution, device)
        yield images


@torch.no_grad()
def draw_images(
    family: Family, denoiser: nn.Module, vae: nn.Module, form: LatentFormat, sampler, positive: Conditioning,
    negative: Conditioning, draws: Sequence[torch.Generator], sampler_steps: int, guidance: float, resolution: int,
    device: torch.device,
) -> list[Image.Image]:
    """A batch of square images, `resolution` pixels wide, each from the noise of its own generator in `draws`. `sampler`
    is a fresh diffusers scheduler; both conditionings are batches of one."""
    count, side = len(draws), resolution // form.downscale
    pair = {name: torch.cat([negative[name].repeat_interleave(count, 0), positive[name].repeat_interleave(count, 0)])
            .to(device) for name in positive}
    sizes = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32, device=device)
    sizes = sizes.repeat(2 * count, 1)
    sampler.set_timesteps(sampler_steps, device=device)
    latents = torch.stack([torch.randn((form.channels, side, side), generator=draw) for draw in draws])
    latents = latents.to(device) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        doubled = sampler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1)
        guess = family.predict(denoiser, doubled, timestep.expand(2 * count), pair, sizes).float()
        without, with_prompt = guess.chunk(2)
        latents = sampler.step(without + guidance * (with_prompt - without), timestep, latents).prev_sample
    with torch.autocast(device.type, enabled=False):  # SDXL's VAE overflows in fp16
        # one by one: decoding needs more memory than denoising
        return [to_image(family.decode_latents(vae, each[None].float(), form)[0]) for each in latents]


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels [3, height, width] in -1…1 → an RGB image."""
    array = ((pixels.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(array)
