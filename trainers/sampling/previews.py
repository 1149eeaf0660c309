"""Images made with the model as it is now, by the family's sampler."""
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .. import randomness
from ..data.images.buckets import Crop
from ..families.conditioning import Conditioning
from ..families.protocol import Family, LatentFormat, Predict, Sampler
from ..spec import BaseModelSpec, PreviewSpec

AT_ONCE = 4
"""Images in one batch of previews: more would need more memory than a training step."""


@torch.no_grad()
def make_previews(
    family: Family, base: BaseModelSpec, denoiser: nn.Module, vae: nn.Module, latent_format: LatentFormat, spec: PreviewSpec,
    conditioning: Callable[[str], Conditioning], resolution: int, device: torch.device, zero_terminal_snr: bool = False,
) -> Iterator[list[Image.Image]]:
    """The square images of each prompt, `resolution` pixels wide. `conditioning(prompt)` gives a batch of one.

    Noise comes from (preview seed, number of the prompt, number of the image): the same every time.
    """
    negative, usual = conditioning(spec.negative), family.usual_sampling(base)
    for number, prompt in enumerate(spec.prompts):
        positive, images = conditioning(prompt), []
        generators = [randomness.generator(spec.seed, number, image) for image in range(spec.images)]
        for start in range(0, spec.images, AT_ONCE):
            images += make_images(
                family, denoiser, vae, latent_format, family.sampler(base, zero_terminal_snr), positive, negative,
                generators[start:start + AT_ONCE], spec.sampler_steps or usual.steps, spec.guidance or usual.guidance,
                resolution, device)
        yield images


@torch.no_grad()
def make_images(
    family: Family, denoiser: nn.Module, vae: nn.Module, latent_format: LatentFormat, sampler: Sampler,
    positive: Conditioning, negative: Conditioning, generators: Sequence[torch.Generator], sampler_steps: int,
    guidance: float, resolution: int, device: torch.device,
) -> list[Image.Image]:
    """A batch of square images, `resolution` pixels wide, each from the noise of its own generator. Both conditionings are
    batches of one."""
    count, side = len(generators), resolution // latent_format.downscale
    shape = (latent_format.channels, side, side)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    crops = family.crop_conditioning([Crop.whole(resolution, resolution)] * count).to(device)
    positive, negative = (each.to(device).repeated(count) | crops for each in (positive, negative))
    predict = guided(family, denoiser, sampler, positive, negative, guidance)
    latents = sampler.sample(predict, noise, sampler_steps)
    with torch.autocast(device.type, enabled=False):  # SDXL's VAE overflows in fp16
        # one by one: decoding needs more memory than denoising
        return [to_image(family.decode_latents(vae, each[None].float(), latent_format)[0]) for each in latents]


def guided(family: Family, denoiser: nn.Module, sampler: Sampler, positive: Conditioning, negative: Conditioning,
           guidance: float) -> Predict:
    """The denoiser as a sampler asks it, with the strength `guidance` in the sampler's kind of guidance; classifier-free
    guidance of strength 1 is none."""
    if sampler.guidance == "classifier-free" and guidance != 1:
        both = Conditioning.collated([negative, positive])

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            doubled = torch.cat([latents, latents])
            prediction = family.predict(denoiser, doubled, timestep.expand(len(doubled)), both).float()
            without, with_prompt = prediction.chunk(2)
            return without + guidance * (with_prompt - without)
        return predict

    if sampler.guidance == "distilled":
        first = next(iter(positive.tensors.values()))
        positive = positive | Conditioning.guidance(guidance, len(first)).to(first.device)
    return lambda latents, timestep: family.predict(denoiser, latents, timestep.expand(len(latents)), positive).float()


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels [3, height, width] in -1…1 → an RGB image."""
    array = ((pixels.permute(1, 2, 0).cpu().numpy() + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(array)
