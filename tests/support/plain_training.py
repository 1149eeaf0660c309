"""Parts of a training loop in plain diffusers and peft, which the engine's losses are compared with."""
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

STEPS, BATCH, SEED, RANK, RATE = 5, 2, 11, 2, 1e-2


def seeded(*counters):
    """The rule of the engine's seeds, written again: numpy's SeedSequence, 63 bits."""
    return int(np.random.SeedSequence([SEED, *counters]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw(*counters):
    return torch.Generator().manual_seed(seeded(*counters))


def encode(base, captions):
    """Conditioning as diffusers' training examples compute it: (hidden, pooled)."""
    def ids(name):
        tokenizer = CLIPTokenizer.from_pretrained(Path(base.path) / name)
        return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids

    first = CLIPTextModel.from_pretrained(base.path, subfolder="text_encoder")
    if base.family != "sdxl":
        return first(ids("tokenizer"))[0].detach(), None
    second = CLIPTextModelWithProjection.from_pretrained(base.path, subfolder="text_encoder_2")
    one = first(ids("tokenizer"), output_hidden_states=True).hidden_states[-2]
    two = second(ids("tokenizer_2"), output_hidden_states=True)
    return torch.cat([one, two.hidden_states[-2]], dim=-1).detach(), two.text_embeds.detach()


def encode_images(base, dataset):
    vae = AutoencoderKL.from_pretrained(base.path, subfolder="vae")
    pixels = [
        torch.from_numpy(np.array(Image.open(image.path))).permute(2, 0, 1).float() / 127.5 - 1
        for image in dataset.images
    ]
    with torch.no_grad():
        return vae.encode(torch.stack(pixels)).latent_dist.mode() * vae.config.scaling_factor


def adapted_unet(base):
    """The UNet with a LoRA of its own, and an optimizer for that."""
    unet = UNet2DConditionModel.from_pretrained(base.path, subfolder="unet").requires_grad_(False)
    torch.manual_seed(seeded(3))
    unet.add_adapter(LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]
    ))
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    return unet, torch.optim.AdamW(trainable, lr=RATE, weight_decay=1e-2, eps=1e-8)


def chosen_images(step, count):
    """Indices of the images of a step, out of `count` of one size."""
    epoch, place = divmod(step, count // BATCH)
    order = draw(1, epoch)
    shuffled = torch.randperm(count, generator=order).tolist()
    batches = [shuffled[start:start + BATCH] for start in range(0, count, BATCH)]
    return batches[torch.randperm(len(batches), generator=order).tolist()[place]]


def optimize(loss, optimizer):
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
