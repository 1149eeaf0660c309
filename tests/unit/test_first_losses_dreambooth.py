"""The first losses of DreamBooth with class images equal those of a loop written with plain diffusers."""
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from finetune.trainers import spec as specs
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from PIL import Image
from support import tiny
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

STEPS, BATCH, SEED, RATE, TEXT_RATE, WEIGHT = 4, 2, 11, 1e-3, 3e-4, 0.7
NOISE, ORDER, CLASS_ORDER = 0, 1, 5
"""The engine's streams, which may not change between versions."""


def draw(*counters):
    """The rule of the engine's seeds, written again: numpy's SeedSequence, 63 bits."""
    seed = np.random.SeedSequence([SEED, *counters]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(seed))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Three class images of noise."""
    folder = tmp_path_factory.mktemp("classes")
    draws = np.random.default_rng(4)
    for number in range(3):
        Image.fromarray(draws.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"class_{number}.png")
        (folder / f"class_{number}.txt").write_text(f"a square of noise, {number}", encoding="utf-8")
    return scan_folder(str(folder), "classes")


class PlainLoop:
    """diffusers' train_dreambooth.py, reduced to its mathematics: subject loss + weight · class loss, two means."""

    def __init__(self, base, text_rate):
        self.base, self.text_rate = base, text_rate
        self.vae = AutoencoderKL.from_pretrained(base.path, subfolder="vae")
        self.unet = UNet2DConditionModel.from_pretrained(base.path, subfolder="unet")
        self.scheduler = DDPMScheduler.from_pretrained(base.path, subfolder="scheduler")
        self.text = [CLIPTextModel.from_pretrained(base.path, subfolder="text_encoder")]
        if base.family == "sdxl":
            self.text.append(CLIPTextModelWithProjection.from_pretrained(base.path, subfolder="text_encoder_2"))
        self.tokenizers = [CLIPTokenizer.from_pretrained(Path(base.path) / name)
                           for name in ("tokenizer", "tokenizer_2")[:len(self.text)]]
        groups = [{"params": list(self.unet.parameters()), "lr": RATE}]
        for encoder in self.text:
            encoder.train().requires_grad_(bool(text_rate))
            groups += [{"params": list(encoder.parameters()), "lr": text_rate}] if text_rate else []
        self.optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, eps=1e-8)

    def latents(self, dataset):
        pixels = [torch.from_numpy(np.array(Image.open(image.path))).permute(2, 0, 1).float() / 127.5 - 1
                  for image in dataset.images]
        with torch.no_grad():
            return self.vae.encode(torch.stack(pixels)).latent_dist.mode() * self.vae.config.scaling_factor

    def encode(self, captions):
        ids = [each(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
               for each in self.tokenizers]
        if len(self.text) == 1:
            return self.text[0](ids[0])[0], None
        first, second = (encoder(each, output_hidden_states=True) for encoder, each in zip(self.text, ids))
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds

    def loss(self, clean, captions, step, samples):
        noise, timesteps = [], []
        for sample in samples:
            generator = draw(NOISE, step, sample)
            timesteps.append(torch.randint(0, 1000, (1,), generator=generator))
            noise.append(torch.randn(clean.shape[1:], generator=generator))
        noise, timesteps = torch.stack(noise), torch.cat(timesteps)
        hidden, pooled = self.encode(captions)
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * len(captions))
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        prediction = self.unet(self.scheduler.add_noise(clean, noise, timesteps), timesteps, hidden,
                               added_cond_kwargs=added).sample
        v = self.scheduler.config.prediction_type == "v_prediction"
        return F.mse_loss(prediction, self.scheduler.get_velocity(clean, noise, timesteps) if v else noise)

    def train(self, dataset, classes):
        sources = [(dataset, self.latents(dataset), ORDER, 0, 1.0),
                   (classes, self.latents(classes), CLASS_ORDER, BATCH, WEIGHT)]
        losses = []
        for step in range(STEPS):
            total = 0.0
            for chosen, latents, stream, first, weight in sources:
                places = batch_of(len(chosen.images), stream, step)
                captions = [chosen.images[place].caption for place in places]
                total = total + weight * self.loss(latents[places], captions, step, range(first, first + BATCH))
            total.backward()
            parameters = [each for group in self.optimizer.param_groups for each in group["params"] if each.grad is not None]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(total.item())
        return losses


def batch_of(count, stream, number):
    """Batch `number` of `count` images of one shape: an epoch is a shuffle, cut into batches in a shuffled order; the
    last is filled up from its beginning."""
    per_epoch = -(-count // BATCH)
    epoch, place = divmod(number, per_epoch)
    generator = draw(stream, epoch)
    shuffled = torch.randperm(count, generator=generator).tolist()
    batches = [shuffled[start:start + BATCH] for start in range(0, count, BATCH)]
    chosen = batches[torch.randperm(len(batches), generator=generator).tolist()[place]]
    return chosen + shuffled[:BATCH - len(chosen)]


@pytest.mark.parametrize("text_rate", [0.0, TEXT_RATE], ids=["denoiser", "with text"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_losses_equal_plain_diffusers(family, text_rate, tiny_bases, squares, classes, make_spec):
    base = tiny_bases[family]
    spec = make_spec(
        base, method=specs.FullSpec(text_encoder_learning_rate=text_rate), optimizer=specs.OptimizerSpec(learning_rate=RATE),
        prior=specs.PriorSpec(dataset=classes, weight=WEIGHT),
        training=specs.TrainingSpec(steps=STEPS, batch_size=BATCH, resolution=64, seed=SEED),
    )
    ours = []
    train_run(spec, open_run(spec), lambda event: ours.append(event.loss) if event.event == "step" else None)
    assert ours == pytest.approx(PlainLoop(base, text_rate).train(squares, classes), abs=1e-5)
    assert len(set(ours)) == STEPS
