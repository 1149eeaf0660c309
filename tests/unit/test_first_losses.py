"""The first losses equal those of a loop written with plain diffusers and peft, for every family."""
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from finetune.trainers import spec as specs
from finetune.trainers.runs import open_run
from finetune.trainers.training import train_run
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


def plain_losses(base, dataset, gamma, offset):
    """diffusers' text-to-image LoRA example, reduced to its mathematics."""
    vae = AutoencoderKL.from_pretrained(base.path, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(base.path, subfolder="unet").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(base.path, subfolder="scheduler")
    pixels = [
        torch.from_numpy(np.array(Image.open(picture.path))).permute(2, 0, 1).float() / 127.5 - 1
        for picture in dataset.pictures
    ]
    with torch.no_grad():
        latents = vae.encode(torch.stack(pixels)).latent_dist.mode() * vae.config.scaling_factor
    hidden, pooled = encode(base, [picture.caption for picture in dataset.pictures])
    torch.manual_seed(seeded(3))
    unet.add_adapter(LoraConfig(
        r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]
    ))
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=1e-2, eps=1e-8)
    losses = []
    for step in range(STEPS):
        epoch, place = divmod(step, len(pixels) // BATCH)
        order = draw(1, epoch)
        shuffled = torch.randperm(len(pixels), generator=order).tolist()
        batches = [shuffled[start:start + BATCH] for start in range(0, len(pixels), BATCH)]
        chosen = batches[torch.randperm(len(batches), generator=order).tolist()[place]]
        noise, timesteps = [], []
        for sample in range(BATCH):
            generator = draw(0, step, sample)
            timesteps.append(torch.randint(0, 1000, (1,), generator=generator))
            noise.append(torch.randn(latents.shape[1:], generator=generator))
            if offset:
                noise[-1] = noise[-1] + offset * torch.randn((4, 1, 1), generator=generator)
        noise, timesteps, clean = torch.stack(noise), torch.cat(timesteps), latents[chosen]
        noisy = scheduler.add_noise(clean, noise, timesteps)
        added = None
        if pooled is not None:
            time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * BATCH)
            added = {"text_embeds": pooled[chosen], "time_ids": time_ids}
        prediction = unet(noisy, timesteps, hidden[chosen], added_cond_kwargs=added).sample
        v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(clean, noise, timesteps) if v else noise
        per_sample = F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3))
        if gamma:
            from diffusers.training_utils import compute_snr

            snr = compute_snr(scheduler, timesteps)
            weight = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
            per_sample = per_sample * weight / (snr + 1 if v else snr)
        loss = per_sample.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("gamma, offset", [(0.0, 0.0), (5.0, 0.1)])
def test_losses_equal_plain_diffusers(family, gamma, offset, tiny_bases, squares, make_spec):
    base = tiny_bases[family]
    spec = make_spec(
        base, method=specs.LoraSpec(rank=RANK, alpha=RANK), optimizer=specs.OptimizerSpec(learning_rate=RATE),
        objective=specs.ObjectiveSpec(min_snr_gamma=gamma, noise_offset=offset),
        training=specs.TrainingSpec(steps=STEPS, batch_size=BATCH, resolution=64, seed=SEED),
    )
    ours = []
    train_run(spec, open_run(spec), lambda event, **fields: ours.append(fields["loss"]) if event == "step" else None)
    assert ours == pytest.approx(plain_losses(base, squares, gamma, offset), abs=1e-5)
    assert len(set(ours)) == STEPS
