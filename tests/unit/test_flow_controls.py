"""Every control of a run that has a meaning for flow models acts on them: previews and class images, validation, masks,
class images as prior, caption dropout, weightings and densities, the mean of the weights."""
import numpy as np
import pytest
import torch
from finetune.trainers import families, randomness
from finetune.trainers import spec as specs
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.split import split
from finetune.trainers.run_folder import open_run
from finetune.trainers.sampling.class_images import make_class_images
from finetune.trainers.spec.class_images import ClassImagesSpec
from finetune.trainers.training.run import train_run
from PIL import Image
from safetensors.torch import load_file
from support import tiny, tiny_flow
from support.flow_models import FLOW_MODELS
from support.plain_flow import plain_validation
from support.running import losses_of, losses_with_a_stop

SEED, SHARE = 11, 0.3
LONG = "one word after the other " * 70
METHODS = {"sd3": specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3, train_t5=True)}
"""Of the others the denoiser alone."""


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """Six images with masks; the caption of one is longer than T5 is padded to."""
    folder = tiny.make_masked_images(tmp_path_factory.mktemp("masked"), 6)
    (folder / "1.txt").write_text(LONG, encoding="utf-8")
    return scan_folder(str(folder), "masked")


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_resume_equals_never_stopping_with_every_control(family, masked, squares, tiny_bases, make_spec, tmp_path):
    spec = make_spec(
        tiny_bases[family], dataset=masked, method=METHODS.get(family, specs.LoraSpec(rank=2, alpha=2)),
        training=specs.TrainingSpec(steps=4, batch_size=2, resolution=64, caption_dropout=0.3, ema_decay=0.9, guidance=2.0),
        objective=specs.ObjectiveSpec(masked=True, noise_offset=0.05, loss="huber", flow_weighting="cosmap",
                                      distribution="mode", distribution_spread=1.2, maximum_timestep=0.9),
        validation=specs.ValidationSpec(fraction=SHARE, every=2), prior=specs.PriorSpec(dataset=squares, weight=0.5),
        previews=specs.PreviewSpec(prompts=("an image", LONG), negative="bad", every=4, sampler_steps=2),
        memory=specs.MemorySpec(gradient_checkpointing=True))
    whole, run = losses_of(spec)
    resumed, again = losses_with_a_stop(spec, 2, tmp_path / "elsewhere")
    assert resumed == whole and len(set(whole)) == 4
    one, other = load_file(run.artifact), load_file(again.artifact)
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    first, last = (np.asarray(Image.open(run.folder / "previews" / f"step_00000{step}.png"), np.int16) for step in (0, 4))
    assert first.shape == last.shape and first.std() > 1 and not np.array_equal(first, last)


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_validation_equals_plain_diffusers(family, tiny_bases, make_spec, squares):
    """Before the first step, whatever training has as its density, its shift and its weighting."""
    events, spec = [], make_spec(
        tiny_bases[family], validation=specs.ValidationSpec(fraction=SHARE),
        objective=specs.ObjectiveSpec(distribution="cosine", flow_shift=7.0, flow_weighting="sigma_sqrt"),
        training=specs.TrainingSpec(steps=1, batch_size=2, resolution=64, caption_dropout=0.9, seed=SEED))
    train_run(spec, open_run(spec), events.append)
    held_out = split(squares.images, SHARE)[1]
    first = next(event.loss for event in events if event.event == "validation")
    assert held_out and first == pytest.approx(plain_validation(tiny_bases[family], held_out, SEED), abs=1e-5)


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_class_images_are_what_diffusers_draws(family, tiny_bases, tmp_path):
    """With a negative prompt, dev with the strength as its input, each with its own shift."""
    base, kind = tiny_bases[family], families.get(family)
    folders = specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "caches"))
    [image] = make_class_images(specs.checked(ClassImagesSpec, **dict(
        base=base, prompt="a photo of a dog", negative="a cat", guidance=4.0, count=1, resolution=64, sampler_steps=5,
        batch_size=1, image_seed=SEED, folders=folders, device="cpu")), lambda event: None).images
    text = kind.load_text(base, torch.float32)
    with torch.no_grad():
        said, negative = (kind.encode_captions(text, [prompt]) for prompt in ("a photo of a dog", "a cat"))
    pipeline = FLOW_MODELS[family].pipeline.from_pretrained(base.path)
    pipeline.set_progress_bar_config(disable=True)
    form = kind.latent_format(base)
    shape = 1, form.channels, 64 // form.downscale, 64 // form.downscale
    noise = torch.randn(shape, generator=randomness.generator(SEED, randomness.CLASS_IMAGES, 0))
    drawn = FLOW_MODELS[family].drawn(pipeline, said, negative, noise, guidance_scale=4.0, height=64, width=64,
                                      num_inference_steps=5, sigmas=torch.linspace(1, 0.2, 5).tolist())
    found, expected = (np.asarray(each, np.int16) for each in (Image.open(image.path), drawn))
    assert np.abs(found - expected).max() <= 1 and found.std() > 1
