"""Masks from files and transparency to the loss, and what they change in a training."""
import numpy as np
import pytest
import torch
from finetune.trainers import randomness
from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.caches.latent_masks import MaskCache
from finetune.trainers.data.images.buckets import Crop, bucket_sizes, fit
from finetune.trainers.data.images.masks import fits, latent_mask, read_mask
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.objectives.objective import make_objective
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import Training, train_run
from PIL import Image
from support.tiny import half_mask, make_masked_images

STEPS = 40
MASKED = specs.ObjectiveSpec(masked=True, unmasked_weight=0.0)



def image(path, size=(64, 64), color="red", mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


# ---- which file is whose mask --------------------------------------------------------------------------------------

def test_masks_are_found_and_are_no_images(tmp_path):
    for name in ("one", "two", "three", "four", "five", "gas_mask"):
        image(tmp_path / f"{name}.png")
    image(tmp_path / "one-masklabel.png", mode="L", color=255)
    image(tmp_path / "two_mask.jpg", mode="L", color=255, size=(32, 32))  # another size and kind of the same shape
    image(tmp_path / "masks" / "three.png", mode="L", color=255)
    image(tmp_path / "masks" / "one.png", mode="L", color=0)  # one-masklabel.png goes before it
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "four.png")
    Image.new("RGBA", (64, 64), (255, 0, 0, 255)).save(tmp_path / "five.png")  # an alpha channel that hides nothing
    dataset = scan_folder(str(tmp_path), "folder")
    masks = {each.name: each.mask.removeprefix(str(tmp_path)) for each in dataset.images}
    assert masks == {"five.png": "", "four.png": "/four.png", "gas_mask.png": "", "one.png": "/one-masklabel.png",
                     "three.png": "/masks/three.png", "two.png": "/two_mask.jpg"}
    by_name = {each.name: each for each in dataset.images}
    assert by_name["four.png"].mask_digest == by_name["four.png"].digest
    assert by_name["one.png"].mask_digest not in ("", by_name["one.png"].digest)
    assert by_name["five.png"].mask_digest == ""
    assert "3 of 6 images have a mask file" in "\n".join(dataset.notes)


def test_masks_that_cannot_be_used_are_named(tmp_path):
    for name in ("broken", "wide", "nearly"):
        image(tmp_path / f"{name}.png", (100, 80))
    (tmp_path / "broken_mask.png").write_bytes(b"no image")
    image(tmp_path / "wide_mask.png", (100, 60), mode="L")
    image(tmp_path / "nearly_mask.png", (101, 80), mode="L")
    image(tmp_path / "lost-masklabel.png", mode="L")
    dataset = scan_folder(str(tmp_path), "folder")
    assert [bool(each.mask) for each in dataset.images] == [False, True, False]
    notes = "\n".join(dataset.notes)
    assert "skipped the mask broken_mask.png: the image cannot be read" in notes
    assert "skipped the mask wide_mask.png: it has 100×60 pixels and wide.png has 100×80" in notes
    assert "1 mask belongs to no image, for example lost-masklabel.png" in notes


def test_shapes_may_differ_by_two_percent():
    assert fits((101, 100), (100, 100)) and fits((100, 101), (100, 100)) and fits((2000, 1000), (200, 100))
    assert not fits((103, 100), (100, 100)) and not fits((100, 103), (100, 100))


# ---- from file to latent size --------------------------------------------------------------------------------------

def test_mask_goes_the_way_of_its_image(tmp_path):
    """A wide image is cut evenly on both sides: a mask of its left half covers the left half of what is left."""
    crop = fit((200, 100), [(64, 64)])
    assert crop == Crop((200, 100), (128, 64), 32, 0, (64, 64))
    mask = latent_mask(half_mask((400, 200)), crop, 8)  # twice as large as its image
    assert mask.shape == (1, 8, 8) and mask.dtype == torch.float32
    expected = torch.zeros((1, 8, 8))
    expected[:, :, :4] = 1
    assert torch.equal(mask, expected)


def test_a_latent_holds_the_mean_of_its_area():
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, (64, 128), dtype=np.uint8)
    crop = fit((128, 64), [(128, 64)])
    mask = latent_mask(Image.fromarray(values), crop, 8)
    means = values.reshape(8, 8, 16, 8).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(mask[0].numpy(), means, atol=1e-6)


def test_transparent_parts_of_a_mask_file_are_black(tmp_path):
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 4, 8))
    mask.save(tmp_path / "mask.png")
    values = np.asarray(read_mask(tmp_path / "mask.png"))
    assert (values[:, :4] == 255).all() and (values[:, 4:] == 0).all()


def test_cache_follows_the_masks_content_and_its_kind(tmp_path):
    folder, crop = make_masked_images(tmp_path / "data", 2), fit((64, 64), bucket_sizes(64))
    Image.new("RGBA", (64, 64), (255, 0, 0, 100)).save(folder / "see_through.png")
    cache, events = MaskCache(str(tmp_path / "caches"), 8), []

    def fill():
        events.clear()
        dataset = scan_folder(str(folder), "data")
        cache.fill([(each, crop) for each in dataset.images], lambda event: events.append(event.what))
        return {each.name: cache.reader(each, crop)() for each in dataset.images}

    masks = fill()
    assert events == ["masks"] * 3
    assert masks["0.png"][0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert masks["see_through.png"].unique().item() == pytest.approx(100 / 255)
    assert fill() and events == []
    half_mask(white="right").save(folder / "0-masklabel.png")
    assert fill()["0.png"][0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1] and events == ["masks"]


def test_each_crop_has_its_own_mask_and_images_without_one_count_everywhere(tmp_path):
    folder = make_masked_images(tmp_path / "data", 1)
    Image.new("RGB", (128, 64), "red").save(folder / "plain.png")
    masked, plain = scan_folder(str(folder), "data").images
    crop = fit((64, 64), [(64, 64)])
    crops = [crop, Crop(*[*vars(crop).values()][:5], mirrored=True), Crop((64, 64), (128, 128), 64, 0, (64, 64))]
    cache = MaskCache(str(tmp_path / "caches"), 8)
    cache.fill([(masked, each) for each in crops], silent)
    assert [cache.reader(masked, each)()[0, 0].tolist() for each in crops] == [[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4,
                                                                              [0.0] * 8]
    assert torch.equal(cache.reader(plain, fit((128, 64), [(128, 64)]))(), torch.ones(1, 8, 16))


def test_a_mask_that_disappears_is_named(tmp_path):
    folder = make_masked_images(tmp_path / "data", 1)
    [only] = scan_folder(str(folder), "data").images
    (folder / "0-masklabel.png").unlink()
    with pytest.raises(UserError, match="It is the mask of '0.png' and could be read when the run was queued"):
        MaskCache(str(tmp_path / "caches"), 8).fill([(only, fit((64, 64), [(64, 64)]))], silent)


# ---- the spec ------------------------------------------------------------------------------------------------------

def test_masked_without_masks_is_refused(tiny_bases, make_spec, squares):
    parts = {**dict(make_spec(tiny_bases["sd1"])), "objective": MASKED}
    with pytest.raises(UserError, match="Masked_loss is on, but no image of the dataset 'squares' has a mask"):
        specs.checked(specs.RunSpec, **parts)


def test_masks_are_part_of_the_identity_only_where_they_count(tiny_bases, make_spec, tmp_path):
    dataset = scan_folder(str(make_masked_images(tmp_path / "data")), "data")
    other = dataset.model_copy(update={"images": tuple(
        each.model_copy(update={"mask": "elsewhere", "mask_digest": "another"}) for each in dataset.images)})
    moved = dataset.model_copy(update={"images": tuple(
        each.model_copy(update={"mask": "elsewhere"}) for each in dataset.images)})

    def identity(data, **parts):
        return make_spec(tiny_bases["sd1"], dataset=data, **parts).identity

    assert identity(dataset) == identity(other)
    assert identity(dataset, objective=MASKED) == identity(moved, objective=MASKED) != identity(other, objective=MASKED)


# ---- training ------------------------------------------------------------------------------------------------------

def trained(spec) -> Training:
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    training.execute()
    return training


def errors_of_halves(training: Training) -> tuple[float, float]:
    """Mean squared error of the left and the right half, at noise and timesteps that are always the same."""
    images = training.data.subject.images
    latents = torch.stack([each.views[0].latents() for each in images]).repeat(8, 1, 1, 1)
    captions = [each.caption for each in images] * 8
    objective = make_objective("epsilon", training.family.alphas_cumprod(training.spec.base), specs.ObjectiveSpec())
    noised = objective.noise(latents, [randomness.generator(99, number) for number in range(len(latents))])
    with torch.no_grad():
        prediction = training.family.predict(training.parts.denoiser.eval(), noised.latents, noised.timesteps,
                                             training.data.captions.batch(captions))
    error = (prediction - noised.target).square().mean(dim=(0, 1, 2))
    return error[:4].mean().item(), error[4:].mean().item()


def test_training_ignores_what_the_mask_leaves_black(tiny_bases, make_spec, tmp_path):
    """Without masks both halves are learned; with them the white half as well as before, and the black one far less."""
    dataset = scan_folder(str(make_masked_images(tmp_path / "data")), "data")

    def errors(name, **parts):
        return errors_of_halves(trained(make_spec(
            tiny_bases["sd1"], name=name, dataset=dataset,
            method=specs.LoraSpec(rank=4, alpha=4, targets="all with convolutions"),
            training=specs.TrainingSpec(steps=STEPS, batch_size=4, resolution=64), **parts)))

    left, right = errors("all")
    masked_left, masked_right = errors("masked", objective=MASKED)
    assert masked_left < 1.05 * left
    assert masked_right > 1.4 * right


def test_validation_looks_where_the_training_does(tiny_bases, make_spec, tmp_path):
    """The weight is linear: 0.25 everywhere and 0.75 more in the mask."""
    dataset = scan_folder(str(make_masked_images(tmp_path / "images")), "images")

    def before_training(**objective) -> float:
        losses, spec = [], make_spec(
            tiny_bases["sd1"], dataset=dataset, objective=specs.ObjectiveSpec(**objective), name=f"run{len(objective)}",
            training=specs.TrainingSpec(steps=1, resolution=64), validation=specs.ValidationSpec(fraction=0.5))

        def emit(event):
            losses.extend([event.loss] if event.event == "validation" else [])

        train_run(spec, open_run(spec), emit)
        return losses[0]

    everywhere, inside, between = (before_training(masked=True, unmasked_weight=weight) for weight in (1.0, 0.0, 0.25))
    assert everywhere == before_training() and 0 < inside < 0.9 * everywhere
    assert between == pytest.approx(0.25 * everywhere + 0.75 * inside, rel=1e-5)
