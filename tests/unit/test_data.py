"""Images, captions, buckets, batches and caches."""
import random

import numpy as np
import pytest
import torch
from finetune.trainers.caches.tensor_cache import TensorCache
from finetune.trainers.data.captions.trigger_word import with_trigger
from finetune.trainers.data.images.buckets import bucket_sizes, bucket_step, fit
from finetune.trainers.data.images.image_files import crop_pixels, read_image
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.errors import UserError
from finetune.trainers.training.batches import BatchOrder
from PIL import Image
from support import tiny


@pytest.mark.parametrize("resolution, multiple", [
    (64, 8), (256, 8), (512, 8), (768, 8), (1024, 8), (256, 16), (1024, 16), (768, 24), (64, 2)])
def test_buckets_share_the_area_and_the_step(resolution, multiple):
    sizes, step = bucket_sizes(resolution, multiple=multiple), bucket_step(resolution, multiple)
    assert step % multiple == 0
    assert (resolution, resolution) in sizes and len(sizes) > 4
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert width * height > 0.6 * resolution**2
        assert (height, width) in sizes


def test_images_fill_their_bucket_and_lose_little():
    draw, sizes = random.Random(0), bucket_sizes(512)
    for _ in range(500):
        size = draw.randint(30, 4000), draw.randint(30, 4000)
        crop = fit(size, sizes)
        assert crop.resized[0] >= crop.bucket[0] and crop.resized[1] >= crop.bucket[1]
        assert crop.resized[0] == crop.bucket[0] or crop.resized[1] == crop.bucket[1]
        if max(size) / min(size) < 2:
            assert crop.kept > 0.85, size
    assert fit((1000, 1000), sizes).bucket == (512, 512)
    assert fit((2000, 1000), sizes).bucket == (704, 320)
    assert fit((3000, 3000), bucket_sizes(512, buckets=False)).bucket == (512, 512)


def test_the_nearest_bucket_is_the_same_for_an_image_and_for_it_turned():
    """Nearest in the logarithm of the aspect ratio: 1.45 is nearer to 2 than to 1, as 1 / 1.45 is to 1 / 2."""
    sizes = [(64, 64), (128, 64), (64, 128)]
    assert [fit(size, sizes).bucket for size in ((145, 100), (100, 145), (138, 100), (100, 138))] == [
        (128, 64), (64, 128), (64, 64), (64, 64)]


def test_crop_is_centered_and_scaled(tmp_path):
    image = Image.new("RGB", (300, 100), "white")
    image.paste("black", (100, 0, 200, 100))
    crop = fit(image.size, [(64, 64)])
    pixels = crop_pixels(image, crop)
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
    assert pixels.max() <= 1 and pixels.mean() == pytest.approx(-1, abs=0.1)
    assert crop.sizes == (100, 300, 0, 64, 64, 64)


def test_images_of_every_kind_become_upright_rgb(tmp_path):
    rotated = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated.save(tmp_path / "rotated.jpg", exif=exif)
    assert read_image(tmp_path / "rotated.jpg").size == (20, 40)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red = read_image(tmp_path / "print.jpg").getpixel((0, 0))
    assert red[0] > 200 and red[1] < 60
    Image.new("P", (8, 8)).save(tmp_path / "palette.gif")
    assert read_image(tmp_path / "palette.gif").mode == "RGB"


def test_folder_becomes_a_manifest(tmp_path):
    folder = tiny.make_images(tmp_path / "images", 3)
    (folder / "square_0.txt").write_bytes("\ufeffa  caption\nwith lines\n".encode())
    (folder / "square_1.txt").write_bytes(b"odd \xff bytes")
    (folder / "square_2.txt").unlink()
    (folder / "broken.png").write_bytes((folder / "square_0.png").read_bytes()[:60])
    (folder / "empty.jpg").touch()
    (folder / "notes.md").write_text("not an image")
    dataset = scan_folder(str(folder), "input/images", trigger="ohwx", repeats=3, default_caption="a thing")
    assert [image.name for image in dataset.images] == ["square_0.png", "square_1.png", "square_2.png"]
    assert [image.caption for image in dataset.images] == [
        "ohwx, a caption with lines", "ohwx, odd ÿ bytes", "ohwx, a thing"]
    assert {image.repeats for image in dataset.images} == {3}
    notes = "\n".join(dataset.notes)
    assert "skipped broken.png" in notes and "skipped empty.jpg" in notes and "1 of 3 images has no caption" in notes


def test_unusable_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        scan_folder(str(tmp_path / "missing"), "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        scan_folder(str(tmp_path / "empty"), "empty")
    (tmp_path / "empty" / "broken.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="The only image in 'empty' cannot be read: broken.png"):
        scan_folder(str(tmp_path / "empty"), "empty")


def test_a_changed_image_changes_its_digest(tmp_path):
    folder = tiny.make_images(tmp_path / "images", 1)
    before = scan_folder(str(folder), "x").images[0].digest
    assert scan_folder(str(folder), "x").images[0].digest == before
    Image.new("RGB", (32, 32), "blue").save(folder / "square_0.png")
    assert scan_folder(str(folder), "x").images[0].digest != before


@pytest.mark.parametrize("caption, expected", [
    ("a dog", "ohwx, a dog"), ("a photo of OHWX dog", "a photo of OHWX dog"), ("", "ohwx"),
    ("an ohwxish dog", "ohwx, an ohwxish dog"), ("ohwx, a dog", "ohwx, a dog"),
])
def test_trigger_is_added_once(caption, expected):
    assert with_trigger(caption, "ohwx") == expected
    assert with_trigger(caption, "") == caption


def test_every_image_comes_as_often_as_its_repeats():
    buckets = [(64, 64)] * 5 + [(128, 32)] * 3
    order = BatchOrder(buckets, [1] * 5 + [2] * 3, batch_size=2, seed=1)
    assert order.batches_per_epoch == 3 + 3
    for epoch in range(3):
        batches = [order[epoch * order.batches_per_epoch + number] for number in range(order.batches_per_epoch)]
        assert all(len({buckets[index] for index in batch}) == 1 and len(batch) == 2 for batch in batches)
        counts = [sum(batch.count(index) for batch in batches) for index in range(8)]
        assert all(count >= repeats for count, repeats in zip(counts, [1] * 5 + [2] * 3))
        assert sum(counts) == 12  # five images fill three pairs: one comes twice
    assert [order[number] for number in range(6)] != [order[number] for number in range(6, 12)]


def test_a_batch_larger_than_its_bucket_is_filled_up():
    assert sorted(BatchOrder([(64, 64)] * 2, [1, 1], batch_size=5, seed=0)[0])[0] == 0
    assert len(BatchOrder([(64, 64)], [1], batch_size=7, seed=0)[3]) == 7


def test_processes_share_a_batch_without_overlap():
    from finetune.trainers.training.batches import Batches, CachedImage, CachedView, Source
    from support.running import nothing

    crop = fit((64, 64), [(64, 64)])
    images = [CachedImage(str(number), [CachedView(crop, lambda number=number: torch.full((4, 8, 8), float(number)))])
              for number in range(8)]

    def batch(rank, processes):
        order = BatchOrder([(64, 64)] * 8, [1] * 8, batch_size=4, seed=0)
        batches = Batches(Source(images, order), 1, 0, 0.5, nothing, rank, processes)
        return batches.load(batches.plan(step=3)[0])

    whole, first, second = batch(0, 1), batch(0, 2), batch(1, 2)
    assert whole.captions == first.captions + second.captions
    assert torch.equal(whole.latents, torch.cat([first.latents, second.latents]))
    assert [g.initial_seed() for g in whole.generators] == [
        g.initial_seed() for g in (*first.generators, *second.generators)]


def test_cache_survives_damage(tmp_path):
    cache, key = TensorCache(tmp_path / "cache"), TensorCache.key("model", [1, 2])
    with pytest.raises(KeyError):
        cache.get(key)
    cache.put(key, {"latents": torch.arange(4.0)})
    assert key in cache and torch.equal(cache.get(key)["latents"], torch.arange(4.0))
    cache.path(key).write_bytes(b"half")
    with pytest.raises(KeyError):
        cache.get(key)
    assert key not in cache
    assert not [path for path in (tmp_path / "cache").rglob(".part-*")]
