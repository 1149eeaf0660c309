"""Variants of images: what they show, where masks and size conditioning go, and which one a step gets."""
from collections import Counter

import numpy as np
import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.data.images.augmentation import PLAIN, View, closer, view_pixels, views_of
from finetune.trainers.data.images.buckets import Crop, bucket_sizes, fit
from finetune.trainers.data.images.image_files import crop_pixels
from finetune.trainers.data.images.masks import latent_mask
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.batches import Batches, BatchOrder, CachedImage, CachedView, Source
from finetune.trainers.training.run import train_run
from PIL import Image
from support.running import nothing, training_of
from support.tiny import make_masked_images


def image(digest="a" * 64, size=(100, 64), **augmentation):
    return specs.DatasetImage(path="a.png", name="a.png", caption="", size=size, digest=digest,
                              augmentation=specs.AugmentationSpec(**augmentation))


def views(number=0, size=(100, 64), bucket=(64, 64), **augmentation):
    return views_of(image(f"{number:064x}", size, **augmentation), fit(size, [bucket]))


def ramp(size, axis=1) -> Image.Image:
    """Gray levels that rise from left to right, or from top to bottom."""
    line = np.linspace(0, 255, size[0] if axis else size[1])
    values = np.broadcast_to(line if axis else line[:, None], (size[1], size[0]))
    return Image.fromarray(values.round().astype(np.uint8)).convert("RGB")


# ---- which variants there are --------------------------------------------------------------------------------------

def test_without_augmentation_there_is_the_plain_image():
    crop = fit((100, 64), [(64, 64)])
    assert views_of(image(), crop) == [View(crop)]
    opened = ramp((100, 64))
    pixels = view_pixels(opened, View(crop))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels.float() / 127.5 - 1, crop_pixels(opened, crop))


@pytest.mark.parametrize("variants", [2, 4, 5])
def test_flip_alone_is_the_image_and_its_mirror_image(variants):
    [plain, other] = views(variants=variants, flip=True)
    assert not plain.crop.mirrored and other.crop.mirrored
    image = ramp((100, 64))
    assert torch.equal(view_pixels(image, other), view_pixels(image, plain).flip(-1))


def test_half_of_the_variants_are_mirrored():
    assert [view.crop.mirrored for view in views(variants=6, flip=True, noise=0.1)] == [False, True] * 3


def test_variants_depend_on_the_image_and_nothing_else():
    settings = dict(variants=8, crop=0.3, color=0.3, noise=0.1)
    assert views(1, **settings) == views(1, **settings)
    assert not set(views(1, **settings)) & set(views(2, **settings))
    assert views(1, **settings)[:4] == views(1, **{**settings, "variants": 4})  # more variants leave the first as they are
    colors = [view.color for view in views(1, **{**settings, "noise": 0.2, "crop": 0.0})]
    assert colors == [view.color for view in views(1, **settings)]  # one setting does not change what another draws


def test_draws_fill_their_ranges_evenly():
    every = [view for number in range(300) for view in views(number, (640, 480), (64, 48), variants=8, crop=0.4, color=0.3)]
    assert len(set(every)) == len(every) == 2400
    kept = np.array([64 / view.crop.resized[0] for view in every])
    assert 0.59 < kept.min() < 0.62 and kept.max() > 0.98
    assert abs(kept.mean() - 0.8) < 0.015  # uniform in 0.6…1
    for place in (0, 1):
        room = np.array([view.crop.resized[place] - view.crop.bucket[place] for view in every])
        where = np.array([(view.crop.left, view.crop.top)[place] for view in every])[room > 8] / room[room > 8]
        assert where.min() >= 0 and where.max() <= 1
        assert abs(where.mean() - 0.5) < 0.03 and abs(where.std() - 12**-0.5) < 0.03
    colors = np.array([view.color for view in every])
    assert colors.min() >= 0.7 and colors.max() <= 1.3
    assert np.abs(colors.mean(axis=0) - 1).max() < 0.02 and np.abs(colors.std(axis=0) - 0.6 * 12**-0.5).max() < 0.01
    assert np.abs(np.corrcoef(colors.T) - np.eye(3)).max() < 0.08


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 100), (64, 64), (65, 64), (30, 20)])
def test_every_crop_lies_inside_and_fills_the_bucket(size):
    plain = fit(size, bucket_sizes(64))
    for fraction in (0.0, 0.01, 0.3, 0.5):
        for left, top in ((0, 0), (0.5, 0.5), (0.999999, 0.999999)):
            crop = closer(plain, fraction, left, top, False)
            assert crop.bucket == plain.bucket and crop.original == size
            assert 0 <= crop.left <= crop.resized[0] - crop.bucket[0] and 0 <= crop.top <= crop.resized[1] - crop.bucket[1]
            assert crop.resized[0] / plain.resized[0] == pytest.approx(1 / (1 - fraction), abs=1 / plain.resized[0])
    assert closer(plain, 0.0, 0.3, 0.8, False) == plain


# ---- what they show ------------------------------------------------------------------------------------------------

def test_a_crop_shows_its_part_of_the_image():
    """Gray levels tell which columns are seen: half of the width, at the right."""
    crop = closer(fit((128, 128), [(64, 64)]), 0.5, 0.999999, 0.0, False)
    levels = view_pixels(ramp((128, 128)), View(crop))[0, 32].float() / 255
    assert levels[0] == pytest.approx(0.5, abs=0.02) and levels[-1] == pytest.approx(1.0, abs=0.02)
    rows = view_pixels(ramp((128, 128), axis=0), View(crop))[0, :, 32].float() / 255
    assert rows[0] == pytest.approx(0.0, abs=0.02) and rows[-1] == pytest.approx(0.5, abs=0.02)


def test_color_changes_brightness_contrast_and_saturation():
    image = Image.new("RGB", (64, 64), (100, 50, 25))
    image.paste((140, 90, 65), (32, 0, 64, 64))
    crop = fit(image.size, [(64, 64)])

    def seen(*color):
        return view_pixels(image, View(crop, color)).float()

    plain = seen(*PLAIN)
    assert torch.allclose(seen(1.2, 1, 1), plain * 1.2, atol=1)
    assert seen(1, 1.5, 1).std() > 1.3 * plain.std() and seen(1, 1.5, 1).mean() == pytest.approx(plain.mean().item(), abs=8)
    spread = [each.amax(dim=0) - each.amin(dim=0) for each in (plain, seen(1, 1, 0.5))]
    assert torch.allclose(spread[1], spread[0] / 2, atol=1.5)


def test_noise_has_its_strength_and_its_seed():
    image = Image.new("RGB", (256, 256), (128, 128, 128))
    crop = fit(image.size, [(256, 256)])
    one, same, other = (view_pixels(image, View(crop, noise=0.05, noise_seed=seed)).float() for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert (one - 128).std() == pytest.approx(0.05 * 255, rel=0.01) and abs((one - 128).mean()) < 0.2
    assert view_pixels(Image.new("RGB", (8, 8)), View(fit((8, 8), [(8, 8)]), noise=0.5)).min() == 0  # cut off, not wrapped


def test_masks_follow_flips_and_crops():
    """An image that is its own mask: for every variant, the mask at latent size is the mean of the variant's pixels."""
    mask = Image.new("L", (200, 130), 0)
    mask.paste(255, (20, 30, 90, 70))
    image, variants = mask.convert("RGB"), views(3, (200, 130), (96, 64), variants=8, flip=True, crop=0.4)
    for view in variants:
        pixels = view_pixels(image, view)[:1].float() / 255
        means = pixels.reshape(1, 8, 8, 12, 8).mean(dim=(2, 4))
        # Lanczos rings at edges where BOX does not: a few hundredths of a cell.
        assert (latent_mask(mask, view.crop, 8) - means).abs().max() < 0.12
        mirrored = Crop(*[*vars(view.crop).values()][:5], mirrored=not view.crop.mirrored)
        assert (latent_mask(mask, mirrored, 8) - means).abs().max() > 0.5


def test_size_conditioning_follows_the_crop():
    plain = fit((200, 100), [(64, 64)])
    assert plain.sizes == (100, 200, 0, 32, 64, 64)
    crop = closer(plain, 0.5, 0.25, 0.75, False)  # twice as large, 256 × 128: a quarter of 128 and three quarters of 64 more
    assert crop.resized == (256, 128) and crop.sizes == (100, 200, 48, 64, 64, 64)
    mirrored = closer(plain, 0.5, 0.25, 0.75, True)
    assert mirrored.sizes == (100, 200, 48, 256 - 64 - 64, 64, 64)


# ---- in a run ------------------------------------------------------------------------------------------------------

def test_every_variant_is_drawn_equally_often():
    crop = fit((64, 64), [(64, 64)])
    variants = [CachedView(crop, lambda number=number: torch.full((4, 8, 8), float(number))) for number in range(5)]
    source = Source([CachedImage("a", variants)], BatchOrder([(64, 64)], [1], 4, 3))
    batches = Batches(source, 1, 3, 0.0, nothing)
    drawn = [int(each[0, 0, 0]) for step in range(2500) for each in batches.load(batches.plan(step)[0]).latents]
    counts = Counter(drawn)
    assert sum((counts[number] - 2000) ** 2 / 2000 for number in range(5)) < 18.5  # 4 degrees of freedom, 1 in 1000


def test_a_run_trains_on_variants_with_their_masks(tiny_bases, make_spec, tmp_path):
    """Each variant is encoded once, from its own pixels; batches hold the mask and the sizes of the variant they hold."""
    dataset = scan_folder(str(make_masked_images(tmp_path / "data")), "data")
    dataset = dataset.model_copy(update={"images": tuple(each.model_copy(update={
        "augmentation": specs.AugmentationSpec(variants=4, flip=True, crop=0.3)}) for each in dataset.images)})
    spec = make_spec(tiny_bases["sdxl"], dataset=dataset, objective=specs.ObjectiveSpec(masked=True),
                     training=specs.TrainingSpec(steps=6, batch_size=2, resolution=64),
                     validation=specs.ValidationSpec(fraction=0.25, every=10))
    encoded, run = [], open_run(spec)
    training = training_of(spec)
    training.emit = lambda event: encoded.append(event.what) if event.event == "encoding" else None
    training.execute()
    held_out = len(training.data.held_out)
    assert held_out and Counter(encoded)["images"] == (4 - held_out) * 4 + held_out == Counter(encoded)["masks"]
    latents = [view.latents() for each in training.data.subject.images for view in each.views]
    assert len({tensor.numpy().tobytes() for tensor in latents}) == len(latents)
    batches = Batches(training.data.subject, 1, 0, 0.0, training.data.conditioning)
    seen = 0
    for step in range(20):
        batch = batches.load(batches.plan(step)[0])
        for sample, mask, sizes in zip(batch.latents, batch.masks, batch.conditioning["sizes"]):
            [view] = [view for each in training.data.subject.images for view in each.views
                      if torch.equal(view.latents(), sample)]
            assert torch.equal(mask, view.mask()) and sizes.tolist() == list(view.crop.sizes)
            white = mask[0].mean(dim=0)
            assert (white[0] < white[-1]) if view.crop.mirrored else (white[0] > white[-1])
            seen += view.crop.mirrored
    assert 5 < seen < 35 and run.folder.exists()


def test_a_second_run_with_another_seed_encodes_nothing(tiny_bases, make_spec, squares):
    dataset = squares.model_copy(update={"images": tuple(each.model_copy(update={
        "augmentation": specs.AugmentationSpec(variants=3, noise=0.1)}) for each in squares.images)})
    encoded, losses = [], {}
    for seed in (0, 1):
        spec = make_spec(tiny_bases["sd1"], name=f"run{seed}", dataset=dataset, training=specs.TrainingSpec(
            steps=2, batch_size=2, resolution=64, seed=seed))

        def emit(event):
            encoded.extend([(seed, event.what)] if event.event == "encoding" else [])
            losses.setdefault(seed, []).extend([event.loss] if event.event == "step" else [])

        train_run(spec, open_run(spec), emit)
    assert Counter(encoded) == {(0, "images"): 12, (0, "captions"): 4} and losses[0] != losses[1]
