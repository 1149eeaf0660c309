"""The first losses equal those of a loop written with plain diffusers and peft, for every family."""
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from finetune.trainers import spec as specs
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from support import tiny
from support.plain_training import (
    BATCH,
    RANK,
    RATE,
    SEED,
    STEPS,
    adapted_unet,
    chosen_images,
    draw,
    encode,
    encode_images,
    optimize,
)


def plain_losses(base, dataset, gamma, offset):
    """diffusers' text-to-image LoRA example, reduced to its mathematics."""
    scheduler = DDPMScheduler.from_pretrained(base.path, subfolder="scheduler")
    latents = encode_images(base, dataset)
    hidden, pooled = encode(base, [image.caption for image in dataset.images])
    unet, optimizer = adapted_unet(base)
    losses = []
    for step in range(STEPS):
        chosen = chosen_images(step, len(latents))
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
        optimize(loss, optimizer)
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
    train_run(spec, open_run(spec), lambda event: ours.append(event.loss) if event.event == "step" else None)
    assert ours == pytest.approx(plain_losses(base, squares, gamma, offset), abs=1e-5)
    assert len(set(ours)) == STEPS
