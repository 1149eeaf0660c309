"""Pictures drawn with the model as it is now: DPM++ 2M with classifier-free guidance (Ho & Salimans 2022)."""
from dataclasses import dataclass
from typing import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import randomness
from .families.protocol import Conditioning, Family, LatentFormat
from .spec import PreviewSpec

AT_ONCE = 4
"""Pictures in one batch of previews: more would need more memory than a training step."""


@dataclass(frozen=True)
class Painter:
    """A model that draws."""

    family: Family
    base: object
    denoiser: nn.Module
    vae: nn.Module
    form: LatentFormat
    device: torch.device

    @torch.no_grad()
    def draw(self, positive: Conditioning, negative: Conditioning, generators: Sequence[torch.Generator], resolution: int,
             steps: int, guidance: float) -> list[Image.Image]:
        """One square picture of a prompt per generator, `resolution` pixels wide. `positive` and `negative` are batches
        of one."""
        count, side = len(generators), resolution // self.form.downscale
        pair = {name: torch.cat([negative[name].expand(count, *negative[name].shape[1:]),
                                 positive[name].expand(count, *positive[name].shape[1:])]).to(self.device)
                for name in positive}
        sizes = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * 2 * count, dtype=torch.float32,
                             device=self.device)
        sampler = self.family.sampler(self.base)
        sampler.set_timesteps(steps, device=self.device)
        noise = torch.cat([torch.randn((1, self.form.channels, side, side), generator=each) for each in generators])
        latents = noise.to(self.device) * sampler.init_noise_sigma
        for timestep in sampler.timesteps:
            doubled = sampler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1)
            guess = self.family.predict(self.denoiser, doubled, timestep.expand(2 * count), pair, sizes).float()
            without, with_prompt = guess.chunk(2)
            latents = sampler.step(without + guidance * (with_prompt - without), timestep, latents).prev_sample
        # One by one: decoding needs more memory than denoising.
        return [to_picture(self.family.decode_latents(self.vae, each[None], self.form)[0]) for each in latents.float()]


def draw_previews(painter: Painter, spec: PreviewSpec, conditioning: Callable[[str], Conditioning],
                  resolution: int) -> Iterator[list[Image.Image]]:
    """The pictures of each prompt. `conditioning(prompt)` gives a batch of one.

    Noise comes from (preview seed, number of the prompt, number of the picture): the same every time.
    """
    negative = conditioning(spec.negative)
    for number, prompt in enumerate(spec.prompts):
        positive, pictures = conditioning(prompt), []
        for start in range(0, spec.pictures, AT_ONCE):
            generators = [randomness.generator(spec.seed, number, picture)
                          for picture in range(start, min(start + AT_ONCE, spec.pictures))]
            pictures += painter.draw(positive, negative, generators, resolution, spec.sampler_steps, spec.guidance)
        yield pictures


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels [3, height, width] in -1…1 → an RGB picture."""
    array = ((pixels.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(array)
