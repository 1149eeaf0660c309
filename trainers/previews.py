"""Pictures drawn with the model as it is now: DPM++ 2M with classifier-free guidance (Ho & Salimans 2022)."""
from typing import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import randomness
from .families.protocol import Conditioning, Family, LatentFormat
from .spec import PreviewSpec


@torch.no_grad()
def draw_previews(
    family: Family, base, denoiser: nn.Module, vae: nn.Module, form: LatentFormat, spec: PreviewSpec,
    conditioning: Callable[[str], Conditioning], resolution: int, device: torch.device, zero_terminal_snr: bool = False,
) -> Iterator[Image.Image]:
    """One square picture per prompt, `resolution` pixels wide. `conditioning(prompt)` gives a batch of one.

    Noise comes from (preview seed, prompt number): the same prompt starts from the same noise every time.
    """
    negative = conditioning(spec.negative)
    sizes = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32, device=device)
    side = resolution // form.downscale
    for number, prompt in enumerate(spec.prompts):
        positive = conditioning(prompt)
        pair = {name: torch.cat([negative[name], positive[name]]).to(device) for name in positive}
        draw = randomness.generator(spec.seed, number)
        sampler = family.sampler(base, zero_terminal_snr)
        sampler.set_timesteps(spec.sampler_steps, device=device)
        latents = torch.randn((1, form.channels, side, side), generator=draw).to(device) * sampler.init_noise_sigma
        for timestep in sampler.timesteps:
            doubled = sampler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1)
            guess = family.predict(denoiser, doubled, timestep.expand(2), pair, sizes.repeat(2, 1)).float()
            without, with_prompt = guess.chunk(2)
            latents = sampler.step(without + spec.guidance * (with_prompt - without), timestep, latents).prev_sample
        yield to_picture(family.decode_latents(vae, latents.float(), form)[0])


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels [3, height, width] in -1…1 → an RGB picture."""
    array = ((pixels.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(array)


def contact_sheet(pictures: list[Image.Image]) -> Image.Image:
    """The pictures side by side; small ones enlarged so that they can be looked at."""
    scale = max(1, 192 // pictures[0].width)
    tiles = [each.resize((each.width * scale, each.height * scale), Image.Resampling.NEAREST) for each in pictures]
    sheet = Image.new("RGB", (sum(tile.width for tile in tiles), max(tile.height for tile in tiles)), "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width
    return sheet
