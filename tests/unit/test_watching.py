"""Watching: it changes nothing, its numbers are those of plain diffusers, and it ends a run where it should."""
import hashlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from finetune.trainers import spec as specs
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.split import split
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.events import ValidationEvent
from finetune.trainers.process.worker import Reporter
from finetune.trainers.reports import ValidationSummary
from finetune.trainers.run_folder import open_run
from finetune.trainers.training import monitor
from finetune.trainers.training import run as training_module
from finetune.trainers.training.run import train_run
from finetune.trainers.training.validation import ValidationRecord
from finetune.trainers.words import clause
from PIL import Image
from safetensors.torch import load_file
from support import tiny

SEED, SHARE = 11, 0.5
EVERYTHING = dict(
    previews=specs.PreviewSpec(prompts=("a square", "a circle"), negative="blue", every=2, sampler_steps=2, images=2),
    checkpoints=specs.CheckpointSpec(minutes=1e-6, keep=2),
)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Twelve images."""
    return scan_folder(str(tiny.make_images(tmp_path_factory.mktemp("twelve"), 12)), "twelve")


def train(spec, stop_after=None):
    """Train as the worker does. Returns (run, its events)."""
    run, steps = open_run(spec), []
    reporter = Reporter(run, None, is_main=True)

    def emit(event):
        reporter(event)
        if event.event == "step":
            steps.append(event.step)

    try:
        train_run(spec, run, emit, lambda: stop_after is not None and steps[-1:] == [stop_after])
    except Cancelled:
        assert stop_after
    return run, list(run.events())


def of_kind(events, kind):
    return [event for event in events if event.event == kind]


# ---- before it starts -----------------------------------------------------------------------------------------------

def test_what_cannot_be_validated_is_refused_before_it_starts(make_spec, tiny_bases, twelve):
    one = twelve.model_copy(update={"images": twelve.images[:1]})
    with pytest.raises(ValueError, match="has a single image"):
        make_spec(tiny_bases["sd1"], dataset=one, validation=specs.ValidationSpec(fraction=0.2))
    with pytest.raises(ValueError, match="validation_fraction is 0"):
        make_spec(tiny_bases["sd1"], validation=specs.ValidationSpec(patience=2))


def test_tensorboard_without_its_package_is_a_sentence(make_spec, tiny_bases, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    spec = make_spec(tiny_bases["sd1"], validation=specs.ValidationSpec(tensorboard=True))
    with pytest.raises(UserError, match="needs the Python package tensorboard"):
        train_run(spec, open_run(spec), lambda event: pytest.fail("it had already begun"))


# ---- it changes nothing --------------------------------------------------------------------------------------------

def test_watching_changes_no_loss(make_spec, tiny_bases, twelve):
    """Of the images that are trained: the plain run has only those."""
    method = specs.LoraSpec(rank=2, alpha=2, dropout=0.3, text_encoder_learning_rate=1e-3)
    trained = twelve.model_copy(update={"images": tuple(split(twelve.images, SHARE)[0])})
    plain, _ = train(make_spec(tiny_bases["sd1"], name="plain", dataset=trained, method=method))
    watched, events = train(make_spec(
        tiny_bases["sd1"], dataset=twelve, method=method, **EVERYTHING,
        validation=specs.ValidationSpec(fraction=SHARE, every=2)))
    assert watched.losses() == plain.losses() and len(plain.losses()) == 6
    one, other = load_file(plain.artifact), load_file(watched.artifact)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert [event.step for event in of_kind(events, "validation")] == [0, 2, 4, 6]
    assert watched.checkpoints() == [4, 5], "the minutes are so short that every step saves"
    rates = of_kind(events, "step")[0].learning_rates
    assert rates == {"denoiser": 1e-2, "te": 1e-3}


# ---- the numbers ---------------------------------------------------------------------------------------------------

def plain_validation(base, images, seed) -> float:
    """Independent of the engine: diffusers' models and add_noise, our rule of noise and timesteps written again."""
    kind = StableDiffusionXLPipeline if base.family == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(base.path)
    vae, unet, scheduler = pipeline.vae, pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    losses = []
    for each in images:
        pixels = torch.from_numpy(np.array(Image.open(each.path))).permute(2, 0, 1).float() / 127.5 - 1
        latents = vae.encode(pixels[None]).latent_dist.mode() * vae.config.scaling_factor
        number = int(hashlib.sha256(f"validation {each.digest}".encode()).hexdigest()[:16], 16)
        entropy = np.random.SeedSequence([seed, 6, number]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator = torch.Generator().manual_seed(int(entropy))
        shift = torch.rand((), generator=generator, dtype=torch.float64).item()
        noise = torch.randn((4, *latents.shape[1:]), generator=generator)
        hidden, _, *pooled = pipeline.encode_prompt(
            each.caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        added = {"text_embeds": pooled[0], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])} if pooled else None
        for level in range(4):
            timestep = torch.tensor([int((level + shift) * 250)])
            noisy = scheduler.add_noise(latents, noise[level:level + 1], timestep)
            target = noise[level:level + 1]
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents, target, timestep)
            losses.append(F.mse_loss(unet(noisy, timestep, hidden, added_cond_kwargs=added).sample, target).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_validation_equals_plain_diffusers(family, make_spec, tiny_bases, twelve):
    """Before the first step, with all that must not count switched on: weighting, noise offset, dropout of captions."""
    _, events = train(make_spec(
        tiny_bases[family], dataset=twelve, validation=specs.ValidationSpec(fraction=SHARE),
        method=specs.LoraSpec(rank=2, alpha=2, dropout=0.5),
        objective=specs.ObjectiveSpec(min_snr_gamma=5, noise_offset=0.1),
        training=specs.TrainingSpec(steps=1, batch_size=2, resolution=64, caption_dropout=0.9, seed=SEED)))
    held_out = split(twelve.images, SHARE)[1]
    assert 1 < len(held_out) < 12
    first, last = of_kind(events, "validation")
    with torch.no_grad():
        assert first.loss == pytest.approx(plain_validation(tiny_bases[family], held_out, SEED), abs=1e-5)
    assert (first.step, last.step) == (0, 1) and first.loss != last.loss


def test_what_is_measured_and_drawn_are_the_mean_weights_that_are_saved(make_spec, tiny_bases, twelve):
    def watched(name, ema_decay, **previews):
        run, _events = train(make_spec(
            tiny_bases["sd1"], name=name, dataset=twelve, validation=specs.ValidationSpec(fraction=SHARE),
            training=specs.TrainingSpec(steps=6, batch_size=2, resolution=64, ema_decay=ema_decay),
            previews=specs.PreviewSpec(prompts=("a square",), every=6, sampler_steps=2, **previews)))
        sheets_of_run = [np.asarray(Image.open(path)) for _, path in run.sheets()]
        return run.losses(), list(run.curve(ValidationEvent).values()), sheets_of_run

    plain, mean, raw = watched("plain", 0.0), watched("mean", 0.9), watched("raw", 0.9, from_ema=False)
    assert plain[0] == mean[0] == raw[0], "a mean beside the weights does not change them"
    assert mean[1] == raw[1] and plain[1][0] == mean[1][0] and plain[1][1] != mean[1][1]
    assert np.array_equal(plain[2][1], raw[2][1]) and not np.array_equal(plain[2][1], mean[2][1])


def test_held_out_images_are_not_trained(make_spec, tiny_bases, twelve):
    """Their content does not matter to the training, nor to the file's account of what was trained."""
    held_out = split(twelve.images, SHARE)[1]
    recaptioned = twelve.model_copy(update={"images": tuple(
        each.model_copy(update={"caption": "something else"}) if each in held_out else each for each in twelve.images)})
    one, events = train(make_spec(tiny_bases["sd1"], dataset=twelve, validation=specs.ValidationSpec(fraction=SHARE)))
    other, changed = train(make_spec(
        tiny_bases["sd1"], dataset=recaptioned, validation=specs.ValidationSpec(fraction=SHARE)))
    assert one.folder != other.folder and one.losses() == other.losses()
    assert of_kind(events, "validation")[0].loss != of_kind(changed, "validation")[0].loss
    assert any(clause(len(held_out), "image", "are held out", 12) in note for note in one.report.notes)


# ---- early stop ----------------------------------------------------------------------------------------------------

SCRIPT = {0: 0.5, 1: 0.9, 2: 0.8, 3: 0.81, 4: 0.7, 5: 0.75, 6: 0.70, 7: 0.71, 8: 0.6}
"""With patience 3 by hand: the best is step 4 (0.7; step 6 only equals it), 5, 6 and 7 are no better, so 7 is the last. The
base's own 0.5 is for comparison only."""


@pytest.fixture
def scripted(monkeypatch):
    """Validation losses by step from SCRIPT; the rest of the run is real."""
    def loss(accelerator, model, objective, held_out, conditioning, seed, tell):
        return SCRIPT[scripted.step]

    validate = monitor.Watching._validate

    def remember(self, step):
        scripted.step = step
        validate(self, step)

    scripted = SimpleNamespace(step=None)
    monkeypatch.setattr(monitor, "validation_loss", loss)
    monkeypatch.setattr(monitor.Watching, "_validate", remember)


def patient(make_spec, base, dataset, ema_decay=0.0):
    return make_spec(base, dataset=dataset, validation=specs.ValidationSpec(fraction=SHARE, every=1, patience=3),
                     training=specs.TrainingSpec(steps=12, batch_size=2, resolution=64, ema_decay=ema_decay))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_early_stop_ends_where_a_hand_says_and_gives_the_best(ema_decay, make_spec, tiny_bases, twelve, scripted):
    run, _events = train(patient(make_spec, tiny_bases["sd1"], twelve, ema_decay))
    assert len(run.losses()) == run.report.steps == 7 and run.report.stopped_early
    assert run.report.validation == ValidationSummary(first=0.5, best=0.7, best_step=4, last=0.71)
    assert any("stopped early, because 3 validations in a row" in note and "that of step 4" in note
               for note in run.report.notes)
    # The same training cut off at step 4 gives the same file.
    spec = patient(make_spec, tiny_bases["sd1"], twelve, ema_decay)
    short, _ = train(spec.model_copy(update={
        "name": "short", "validation": specs.ValidationSpec(fraction=SHARE, every=100),
        "training": spec.training.model_copy(update={"steps": 4})}))
    one, other = load_file(run.artifact), load_file(short.artifact)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    last = load_file(run.checkpoint_folder(7) / "run_step000007.safetensors")
    assert any(not torch.equal(one[name], last[name]) for name in one), "the last weights would be others"


@pytest.mark.parametrize("stop_after", [2, 5, 6])
def test_early_stop_goes_on_after_a_resume(stop_after, make_spec, tiny_bases, twelve, scripted):
    run, events = train(patient(make_spec, tiny_bases["sd1"], twelve), stop_after)
    assert run.report is None and of_kind(events, "step")[-1].step == stop_after
    run, events = train(patient(make_spec, tiny_bases["sd1"], twelve))
    assert of_kind(events, "resumed")[0].step == stop_after
    assert run.report.steps == 7 and run.report.validation.best_step == 4
    assert [event.step for event in of_kind(events, "validation")] == list(range(8))


def test_a_run_killed_between_its_early_end_and_its_report_ends_there_again(make_spec, tiny_bases, twelve, scripted):
    run, _ = train(patient(make_spec, tiny_bases["sd1"], twelve))
    report, artifact = run.report, run.artifact.read_bytes()
    run.report_path.unlink()
    again, events = train(patient(make_spec, tiny_bases["sd1"], twelve))
    assert len(of_kind(events, "step")) == 7 and again.artifact.read_bytes() == artifact
    assert again.report.model_copy(update={"seconds": 0}) == report.model_copy(update={"seconds": 0})


def test_record_without_patience_never_ends():
    record = ValidationRecord(patience=0)
    assert [record.add(step, loss) for step, loss in SCRIPT.items()] == [
        False, True, True, False, True, False, False, False, True]
    assert not record.exhausted and record.best_step == 8


def test_real_validation_is_the_same_after_a_resume(make_spec, tiny_bases, twelve, tmp_path):
    parts = dict(dataset=twelve, validation=specs.ValidationSpec(fraction=SHARE, every=2))
    whole, _ = train(make_spec(tiny_bases["sd1"], **parts))
    folders = specs.FolderSpec(runs=str(tmp_path / "other runs"), caches=str(tmp_path / "caches"))
    train(make_spec(tiny_bases["sd1"], **parts, folders=folders), stop_after=3)
    resumed, _ = train(make_spec(tiny_bases["sd1"], **parts, folders=folders))
    assert resumed.curve(ValidationEvent) == whole.curve(ValidationEvent) and len(whole.curve(ValidationEvent)) == 4
    assert resumed.report.validation == whole.report.validation


# ---- time ----------------------------------------------------------------------------------------------------------

class Clock:
    """Ten seconds pass in every step and a thousand in every preview."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1e9 + self.now


def test_minutes_and_time_left_by_a_clock(make_spec, tiny_bases, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(training_module, "time", clock)
    accumulate, generator = training_module.loop.accumulate_gradients, monitor.previews.make_previews

    def slow_step(*arguments):
        clock.now += 10
        return accumulate(*arguments)

    def slow_preview(*arguments):
        clock.now += 1000
        return generator(*arguments)

    monkeypatch.setattr(training_module.loop, "accumulate_gradients", slow_step)
    monkeypatch.setattr(monitor.previews, "make_previews", slow_preview)
    run, events = train(make_spec(
        tiny_bases["sd1"], training=specs.TrainingSpec(steps=12, batch_size=2, resolution=64),
        checkpoints=specs.CheckpointSpec(every=5, minutes=0.5, keep=9),
        previews=specs.PreviewSpec(prompts=("a",), every=9, sampler_steps=1)))
    steps = of_kind(events, "step")
    assert [event.seconds_per_step for event in steps] == [10.0] * 12
    assert [event.seconds_left for event in steps] == [10.0 * left for left in range(11, -1, -1)]
    # The preview before the first step takes its 1000 s: step 1 is late. Then 30 s are 3 steps; step 5 and 10 come by
    # their number and begin a new half minute; the preview of step 9 is slow again.
    assert run.checkpoints() == [1, 4, 5, 8, 9, 10]


# ---- images ------------------------------------------------------------------------------------------------------

def cells(sheet: Image.Image, rows: int, columns: int) -> dict:
    """The images of a sheet of 64-pixel previews, found by their known places: 192 wide, 4 apart, lines of 20."""
    assert sheet.size == (columns * 196 - 4, 20 + rows * 212)
    return {(row, column): np.asarray(sheet.crop((
        column * 196, 40 + row * 212, column * 196 + 192, 232 + row * 212)).convert("RGB"), np.float32)
        for row in range(rows) for column in range(columns)}


def test_sheets_and_strip(make_spec, tiny_bases):
    run, events = train(make_spec(tiny_bases["sd1"], previews=EVERYTHING["previews"]))
    drawn = {step: cells(Image.open(path), 2, 2) for step, path in run.sheets()}
    assert list(drawn) == [0, 2, 4, 6]
    strip = cells(Image.open(run.strip_path), 2, 4)
    for column, step in enumerate(drawn):
        for row in range(2):
            assert np.array_equal(strip[row, column], drawn[step][row, 0])
    assert not np.array_equal(drawn[0][0, 0], drawn[0][0, 1]), "each image has its own noise"
    assert {event.path for event in of_kind(events, "overview")} == {str(run.strip_path), str(run.chart_path)}


def test_the_same_prompt_starts_from_the_same_noise_every_time(make_spec, tiny_bases, monkeypatch):
    """Also in a run with more images, and guidance and negative prompt act."""
    def first_sheet(name, **settings):
        spec = make_spec(tiny_bases["sd1"], name=name, training=specs.TrainingSpec(steps=1, batch_size=2, resolution=64),
                         optimizer=specs.OptimizerSpec(learning_rate=1e-9),
                         previews=specs.PreviewSpec(prompts=("a square", "a square"), every=1, sampler_steps=2, **settings))
        run, _ = train(spec)
        return [cells(Image.open(path), 2, settings.get("images", 1)) for _, path in run.sheets()]

    before, after = first_sheet("one")
    many, _ = first_sheet("many", images=6)
    for row in range(2):
        assert np.abs(before[row, 0] - after[row, 0]).max() <= 1  # nothing was learned, so the noise was the same
        assert np.abs(before[row, 0] - many[row, 0]).max() <= 1
    assert np.abs(before[0, 0] - before[1, 0]).max() > 10, "two prompts have two noises"
    assert len({each.tobytes() for each in many.values()}) == 12
    assert np.abs(before[0, 0] - first_sheet("other", seed=1)[0][0, 0]).max() > 10
    assert not np.array_equal(before[0, 0], first_sheet("negative", negative="blue square", guidance=30)[0][0, 0])


def test_the_chart_shows_its_curves(make_spec, tiny_bases, twelve):
    from finetune.trainers.drawing.loss_chart import TRAINING, VALIDATION, loss_chart

    falling = {step: 1 - step / 200 for step in range(1, 101)}
    chart = np.asarray(loss_chart(falling, {0: 1.0, 50: 0.8, 100: 0.6}, {step: 0.3 for step in falling}), np.int32)
    assert chart.shape == (540, 960, 3)
    plot, places = chart[60:480, 90:870], {}
    for name, here in {
        "training": np.abs(plot - TRAINING).max(axis=2) < 12,
        "validation": np.abs(plot - VALIDATION).max(axis=2) < 12,
        "norm": plot[..., 1] - np.maximum(plot[..., 0], plot[..., 2]) > 10,  # thin, and the only green
    }.items():
        found = np.argwhere(here)
        places[name] = found[np.argsort(found[:, 1])]
        assert found[:, 1].max() - found[:, 1].min() > 600, f"{name} runs through the whole chart"
    assert places["training"][:20, 0].mean() < places["training"][-20:, 0].mean() - 100, "it falls"
    run, _events = train(make_spec(tiny_bases["sd1"], dataset=twelve, validation=specs.ValidationSpec(fraction=SHARE)), 1)
    assert Image.open(run.chart_path).size == (960, 540), "after a cancel too, even of a single step"


def test_tensorboard_has_all_numbers(make_spec, tiny_bases, twelve):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec = make_spec(tiny_bases["sd1"], dataset=twelve, previews=EVERYTHING["previews"],
                     validation=specs.ValidationSpec(fraction=SHARE, every=2, tensorboard=True))
    train(spec, stop_after=3)
    run, events = train(spec)
    board = EventAccumulator(str(run.folder / "tensorboard"))
    board.Reload()
    steps = of_kind(events, "step")
    for tag, wanted in {
        "loss/training": {event.step: event.loss for event in steps},
        "gradient norm": {event.step: event.gradient_norm for event in steps},
        "learning rate/denoiser": {event.step: event.learning_rate for event in steps},
        "loss/validation": {event.step: event.loss for event in of_kind(events, "validation")},
    }.items():
        assert {event.step: event.value for event in board.Scalars(tag)} == pytest.approx(wanted), tag
    assert [event.step for event in board.Images("previews")] == [0, 2, 4, 6]
    assert json.dumps(run.report.model_dump(mode="json"))
