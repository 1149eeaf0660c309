"""Objective controls in whole runs: against a plain diffusers loop, through stop and resume, and in the file's metadata."""
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.families.component_loading import load_sampler
from finetune.trainers.families.latent_diffusion import LatentDiffusion
from finetune.trainers.families.samplers import DiscreteSampler
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import Training, train_run
from safetensors import safe_open
from safetensors.torch import load_file
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
from support.running import losses_of
from support.tiny import make_masked_images

ALL = dict(noise_offset=0.05, multires_iterations=6, multires_discount=0.4, input_perturbation=0.1, image_noise=0.02,
           loss="huber", huber_schedule="exponential", minimum_timestep=0.05, maximum_timestep=0.95, masked=True,
           distribution="logit_normal", distribution_mean=0.3, distribution_spread=1.2, unmasked_weight=0.2)
"""Every control at once; the weightings exclude each other, and zero_terminal_snr needs v-prediction."""


def run_losses(spec, **arguments) -> list[float]:
    return losses_of(spec, **arguments)[0]


def plain_losses(base, dataset, perturbation, c, least, most, zero_terminal_snr):
    """diffusers' LoRA example with its `input_perturbation`, and kohya's debiased estimation and Huber loss (schedule snr)
    from the formulas; timesteps from a range."""
    scheduler = DDPMScheduler.from_pretrained(base.path, subfolder="scheduler", rescale_betas_zero_snr=zero_terminal_snr)
    latents = encode_images(base, dataset)
    hidden, _ = encode(base, [image.caption for image in dataset.images])
    unet, optimizer = adapted_unet(base)
    losses = []
    for step in range(STEPS):
        chosen = chosen_images(step, len(latents))
        timesteps, noise, unknown = [], [], []
        for sample in range(BATCH):
            generator = draw(0, step, sample)
            timesteps.append(torch.randint(int(1000 * least), int(1000 * most), (1,), generator=generator))
            noise.append(torch.randn(latents.shape[1:], generator=generator))
            unknown.append(torch.randn(latents.shape[1:], generator=generator))
        timesteps, noise, unknown, clean = torch.cat(timesteps), torch.stack(noise), torch.stack(unknown), latents[chosen]
        noisy = scheduler.add_noise(clean, noise + perturbation * unknown, timesteps)
        prediction = unet(noisy, timesteps, hidden[chosen]).sample
        v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(clean, noise, timesteps) if v else noise
        alphas = scheduler.alphas_cumprod[timesteps]
        sigmas = ((1 - alphas) / alphas) ** 0.5
        threshold = ((1 - c) / (1 + sigmas) ** 2 + c).reshape(-1, 1, 1, 1)
        error = 2 * threshold * (torch.sqrt((prediction - target) ** 2 + threshold**2) - threshold)
        snr = compute_snr(scheduler, timesteps).clamp(max=1000)
        loss = (error.mean(dim=(1, 2, 3)) * (1 / (snr + 1) if v else 1 / snr.sqrt())).mean()
        optimize(loss, optimizer)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family, least, most, zero_terminal_snr", [
    ("sd1", 0.2, 0.65, False), ("sd2", 0.0, 0.4, False), ("sd2", 0.997, 1.0, True),
])
def test_losses_equal_plain_diffusers(family, least, most, zero_terminal_snr, tiny_bases, squares, make_spec):
    spec = make_spec(
        tiny_bases[family], method=specs.LoraSpec(rank=RANK, alpha=RANK), optimizer=specs.OptimizerSpec(learning_rate=RATE),
        objective=specs.ObjectiveSpec(debiased=True, input_perturbation=0.15, loss="huber", huber_c=0.2,
                                      minimum_timestep=least, maximum_timestep=most, zero_terminal_snr=zero_terminal_snr),
        training=specs.TrainingSpec(steps=STEPS, batch_size=BATCH, resolution=64, seed=SEED),
    )
    ours, theirs = run_losses(spec), plain_losses(tiny_bases[family], squares, 0.15, 0.2, least, most, zero_terminal_snr)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert len(set(ours)) == STEPS


@pytest.mark.parametrize("family, others", [("sd1", {"debiased": True}), ("sd2", {"zero_terminal_snr": True})])
def test_resume_equals_never_stopping_with_all_controls(family, others, tiny_bases, make_spec, tmp_path):
    parts = dict(dataset=scan_folder(str(make_masked_images(tmp_path / "data")), "data"),
                 objective=specs.ObjectiveSpec(**ALL, **others),
                 previews=specs.PreviewSpec(prompts=("image 1",), every=3, sampler_steps=2))
    spec = make_spec(tiny_bases[family], **parts)
    whole, run = run_losses(spec), open_run(spec)
    assert len(whole) == 6 and all(0 < loss < 100 for loss in whole)
    stopped = make_spec(tiny_bases[family], **parts, folders=specs.FolderSpec(
        runs=str(tmp_path / "other runs"), caches=str(tmp_path / "caches")))
    beginning, count = [], iter(range(100))
    with pytest.raises(Cancelled):
        train_run(stopped, open_run(stopped), lambda event: beginning.append(event.loss)
                  if event.event == "step" else None, stop_requested=lambda: next(count) == 2)
    assert 0 < len(beginning) < 6 and beginning + run_losses(stopped) == whole
    one, other = load_file(run.artifact), load_file(open_run(stopped).artifact)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_class_images_are_never_masked(tiny_bases, make_spec, tmp_path):
    """Their loss is that of a run without masks; the subject's is not. Images without a mask count everywhere."""
    folder = make_masked_images(tmp_path / "data")
    (folder / "3-masklabel.png").unlink()
    dataset, seen, notes = scan_folder(str(folder), "data"), [], []
    spec = make_spec(tiny_bases["sd1"], dataset=dataset, prior=specs.PriorSpec(dataset=dataset),
                     objective=specs.ObjectiveSpec(masked=True))
    training = Training(spec, open_run(spec), lambda event: notes.append(getattr(event, "text", None)), lambda: False,
                        make_accelerator(spec))
    training.execute()
    for source in (training.data.subject, training.data.prior):
        views = [view for image in source.images for view in image.views]
        seen.append([view.mask and view.mask().mean().item() for view in views])
    assert seen == [[0.5, 0.5, 0.5, 1.0], [None] * 4]
    assert "1 of 4 images has no mask, so that all of it counts, 3.png for example" in notes


def test_notes_reach_the_report(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], objective=specs.ObjectiveSpec(flow_shift=3.0))
    run_losses(spec)
    assert any("flow_shift is not read" in note for note in open_run(spec).report.notes)


def test_weightings_of_noise_levels_are_refused_for_flow(tiny_bases, make_spec):
    flow = tiny_bases["sd1"].model_copy(update={"prediction_type": "flow"})
    parts = dict(make_spec(tiny_bases["sd1"]))
    for name in ("debiased", "zero_terminal_snr"):
        with pytest.raises(UserError, match=rf"(?i){name}\w* (is a weighting of epsilon|needs a model that predicts v)"):
            specs.checked(specs.RunSpec, **{**parts, "base": flow, "objective": specs.ObjectiveSpec(**{name: True})})


def test_the_file_tells_the_controls_in_kohyas_names(tiny_bases, make_spec, tmp_path):
    def metadata(name, **parts):
        spec = make_spec(tiny_bases["sd2"], name=name, training=specs.TrainingSpec(steps=1, resolution=64), **parts)
        run_losses(spec)
        with safe_open(open_run(spec).artifact, "pt") as file:
            return file.metadata()

    plain = metadata("plain")
    assert plain["ss_loss_type"] == "l2" and plain["ss_debiased_estimation"] == plain["ss_masked_loss"] == "False"
    assert plain["ss_zero_terminal_snr"] == "False"
    absent = {"ss_huber_c", "ss_huber_schedule", "ss_multires_noise_iterations", "ss_multires_noise_discount",
              "ss_ip_noise_gamma", "modelspec.timestep_range"}
    assert not absent & plain.keys()
    told = metadata("told", dataset=scan_folder(str(make_masked_images(tmp_path / "data")), "data"),
                    objective=specs.ObjectiveSpec(**ALL, zero_terminal_snr=True))
    assert {name: told[name] for name in (*absent, "ss_loss_type", "ss_zero_terminal_snr", "ss_masked_loss")} == {
        "ss_huber_c": "0.1", "ss_huber_schedule": "exponential", "ss_multires_noise_iterations": "6",
        "ss_multires_noise_discount": "0.4", "ss_ip_noise_gamma": "0.1", "modelspec.timestep_range": "50,950",
        "ss_loss_type": "huber", "ss_zero_terminal_snr": "True", "ss_masked_loss": "True"}


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_previews_are_drawn_on_the_trained_schedule(zero_terminal_snr, tiny_bases, make_spec, monkeypatch):
    asked = []

    def sampler(family, base, zero_terminal_snr=False):
        asked.append(zero_terminal_snr)
        return DiscreteSampler(load_sampler(base, zero_terminal_snr))

    monkeypatch.setattr(LatentDiffusion, "sampler", sampler)
    run_losses(make_spec(
        tiny_bases["sd2"], training=specs.TrainingSpec(steps=1, resolution=64),
        objective=specs.ObjectiveSpec(zero_terminal_snr=zero_terminal_snr),
        previews=specs.PreviewSpec(prompts=("a",), every=1, sampler_steps=2)))
    assert asked == [False, *[zero_terminal_snr] * 2]  # the first looks at the kind of guidance
