"""The engine's rules of seeds, order and noise written again, for loops of plain diffusers that tests compare with."""
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image


def seeded(seed, *counters):
    """numpy's SeedSequence, 63 bits."""
    return int(np.random.SeedSequence([seed, *counters]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw(seed, *counters):
    return torch.Generator().manual_seed(seeded(seed, *counters))


def picked(seed, step, count, size):
    """Indices of the images of a step: shuffled once an epoch, then the batches once more."""
    epoch, place = divmod(step, count // size)
    order = draw(seed, 1, epoch)
    shuffled = torch.randperm(count, generator=order).tolist()
    batches = [shuffled[start:start + size] for start in range(0, count, size)]
    return batches[torch.randperm(len(batches), generator=order).tolist()[place]]


def noise_of(seed, step, size, shape):
    """(noise, timesteps) of a step."""
    noise, timesteps = [], []
    for sample in range(size):
        generator = draw(seed, 0, step, sample)
        timesteps.append(torch.randint(0, 1000, (1,), generator=generator))
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise), torch.cat(timesteps)


@torch.no_grad()
def latents_of(base, dataset):
    vae = AutoencoderKL.from_pretrained(base.path, subfolder="vae")
    pixels = [
        torch.from_numpy(np.array(Image.open(image.path))).permute(2, 0, 1).float() / 127.5 - 1
        for image in dataset.images
    ]
    return vae.encode(torch.stack(pixels)).latent_dist.mode() * vae.config.scaling_factor
