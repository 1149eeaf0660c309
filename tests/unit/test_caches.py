"""Caches on disk: what is encoded when, killed and simultaneous processes, age."""
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.caches import encoding, tensor_cache
from finetune.trainers.caches.encoding import LatentCache, ahead
from finetune.trainers.caches.tensor_cache import DAY, TensorCache, clean_caches
from finetune.trainers.data.images.augmentation import View
from finetune.trainers.data.images.buckets import bucket_sizes, fit
from finetune.trainers.data.images.image_files import crop_pixels, read_image
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.events import silent
from finetune.trainers.families.recognition import recognize
from finetune.trainers.memory.placement import Placement
from finetune.trainers.process.parent import SCRIPT
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def make_noise(folder, count: int):
    """Images of several shapes that differ everywhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        width, height = [(90, 64), (64, 64), (64, 100), (200, 130)][number % 4]
        Image.effect_noise((width, height), 80 + number).convert("RGB").save(folder / f"{number:03}.png")
    return scan_folder(str(folder), "noise")


def latent_cache(spec):
    family = families.get(spec.base.family)
    return LatentCache(spec, family, family.latent_format(spec.base))


def plain_views(dataset):
    return [(image, View(fit(image.size, bucket_sizes(64)))) for image in dataset.images]


# ---- filling -------------------------------------------------------------------------------------------------------

def test_encoding_together_equals_one_by_one(tiny_bases, make_spec, tmp_path, monkeypatch):
    """Batches of images that were read ahead, as on a GPU, against each image encoded alone. Sums are rounded in another
    order."""
    batches, sizes = encoding.batches_of, []

    def together(jobs, most):
        for batch in batches(jobs, encoding.IMAGES_AT_ONCE):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(encoding, "batches_of", together)
    views = plain_views(make_noise(tmp_path / "images", 23))
    cache, events = latent_cache(make_spec(tiny_bases["sd1"])), []
    vae = cache.fill(views, CPU, lambda event: events.append((event.event, getattr(event, "done", None))))
    assert events == [("phase", None), *(("encoding", done) for done in range(1, 24))]
    assert max(sizes) == 4 and sum(sizes) == 23
    for image, view in views:
        pixels = crop_pixels(read_image(Path(image.path)), view.crop)
        alone = cache.family.encode_images(vae, pixels[None], cache.form)[0]
        torch.testing.assert_close(cache.reader(image, view)(), alone, atol=1e-5, rtol=1e-5)


def test_batches_hold_one_size_and_a_limited_area():
    def job(size, count):
        crop = fit(size, [size])
        return [(None, View(crop), torch.zeros(0)) for _ in range(count)]

    jobs = [job((64, 64), 5), job((64, 64), 20), job((512, 256), 3), job((1024, 1024), 2)]
    sizes = [(batch[0][1].crop.bucket, len(batch)) for batch in encoding.batches_of(jobs, 4)]
    assert sizes == [((64, 64), 4)] * 6 + [((64, 64), 1), ((512, 256), 2), ((512, 256), 1)] + [((1024, 1024), 1)] * 2


def test_no_more_is_begun_than_asked_for():
    from concurrent.futures import ThreadPoolExecutor

    begun, lock = [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        return item

    with ThreadPoolExecutor(3) as pool:
        results = ahead(pool, work, range(100), 6)
        for expected in range(40):
            assert next(results) == expected
            assert len(begun) <= expected + 6
        results.close()
    assert len(begun) <= 46


def test_a_cancel_keeps_what_is_encoded(tiny_bases, make_spec, tmp_path):
    """Heard between images; the next run encodes only the rest."""
    views = plain_views(make_noise(tmp_path / "images", 40))
    cache, done = latent_cache(make_spec(tiny_bases["sd1"])), []

    def stop(event):
        if event.event == "encoding":
            done.append(event.done)
            if len(done) == 12:
                raise Cancelled

    with pytest.raises(Cancelled):
        cache.fill(views, CPU, stop)
    there = sum(cache.key(*each) in cache.cache for each in views)
    assert there == 12
    rest = []
    cache.fill(views, CPU, lambda event: rest.append(event.total) if event.event == "encoding" else None)
    assert rest == [40 - there] * (40 - there)
    assert cache.fill(views, CPU, lambda event: pytest.fail(str(event))) is None


def test_an_image_that_disappeared_is_named(tiny_bases, make_spec, tmp_path):
    dataset = make_noise(tmp_path / "images", 3)
    (tmp_path / "images" / "001.png").unlink()
    with pytest.raises(UserError, match="001.png.*It could be read when the run was queued"):
        latent_cache(make_spec(tiny_bases["sd1"])).fill(plain_views(dataset), CPU, silent)


def test_keys_follow_everything_that_changes_pixels(tiny_bases, make_spec, squares):
    cache, [image, *_] = latent_cache(make_spec(tiny_bases["sd1"])), squares.images
    crop = fit((100, 64), [(64, 64)])
    others = [fit((101, 64), [(64, 64)]), crop.__class__(*[*vars(crop).values()][:5], mirrored=True)]
    views = [View(crop), *(View(each) for each in others), View(crop, (1.1, 1.0, 1.0)), View(crop, (1.0, 1.1, 1.0)),
             View(crop, noise=0.1, noise_seed=1), View(crop, noise=0.1, noise_seed=2), View(crop, noise=0.2, noise_seed=1)]
    keys = {cache.key(image, view) for view in views}
    keys |= {cache.key(image.model_copy(update={field: value}), View(crop))
             for field, value in (("digest", "another"), ("background", "#000000"))}
    keys.add(latent_cache(make_spec(tiny_bases["sd2"])).key(image, View(crop)))
    assert len(keys) == len(views) + 3
    same = image.model_copy(update={"caption": "another", "path": "elsewhere", "repeats": 5, "weight": 2.0})
    assert cache.key(same, View(crop)) == cache.key(image, View(crop))


# ---- killed, and two at once ---------------------------------------------------------------------------------------

def test_a_killed_process_and_two_at_once_leave_a_whole_cache(preloaded, tiny_bases, make_spec, tmp_path):
    """Two processes fill one cache; one of them is killed in the middle of it."""
    dataset = make_noise(tmp_path / "images", 120)
    spec = make_spec(tiny_bases["sd1"], dataset=dataset)
    processes = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.json"
        path.write_text(spec.model_copy(update={"name": name}).model_dump_json(), encoding="utf-8")
        processes.append(subprocess.Popen([*preloaded, str(SCRIPT), "train", str(path)], stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL))
    cache, views = latent_cache(spec), plain_views(dataset)
    while not list(cache.cache.folder.glob("*/*.safetensors")):
        assert any(process.poll() is None for process in processes)
        time.sleep(0.001)
    processes[0].kill()
    whole = [key for key in (cache.key(*each) for each in views) if key in cache.cache]
    assert all(cache.cache.get(key)["latents"].isfinite().all() for key in whole)
    assert [process.wait() for process in processes] == [-9, 0]
    fresh = latent_cache(spec.model_copy(update={"folders": specs.FolderSpec(
        runs=spec.folders.runs, caches=str(tmp_path / "fresh"))}))
    fresh.fill(views, CPU, silent)
    for each in views:
        torch.testing.assert_close(cache.reader(*each)(), fresh.reader(*each)(), atol=1e-5, rtol=1e-5)


PUT = """
import sys
sys.path.insert(0, {tests!r})
import conftest, torch
from pathlib import Path
from finetune.trainers.caches.tensor_cache import TensorCache
cache = TensorCache(Path(sys.argv[1]))
for number in range(10**6):
    cache.put(cache.key(number % 50), {{"latents": torch.full((500_000,), float(number % 50))}})
"""


def test_a_writer_that_is_killed_leaves_no_half_entry(tmp_path):
    """Files of 2 MB, so that a kill is likely in the middle of one."""
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", PUT.format(tests=os.path.dirname(os.path.dirname(__file__))),
                                    str(tmp_path)], stderr=subprocess.DEVNULL)
        cache = TensorCache(tmp_path)
        while len(list(tmp_path.glob("*/*.safetensors"))) < 5 + 5 * attempt:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
    entries = [number for number in range(50) if TensorCache.key(number) in cache]
    assert len(entries) >= 10
    assert all(torch.equal(cache.get(TensorCache.key(number))["latents"], torch.full((500_000,), float(number)))
               for number in entries)
    leftovers = list(tmp_path.glob("*/.part-*"))
    for file in leftovers:
        os.utime(file, (time.time() - 2 * DAY,) * 2)
    assert cache.clean(30)[0] == len(leftovers) and not list(tmp_path.glob("*/.part-*"))
    assert all(TensorCache.key(number) in cache for number in entries)


# ---- age -----------------------------------------------------------------------------------------------------------

def aged(path, days: float):
    moment = time.time() - days * DAY
    os.utime(path, (moment, moment))


def test_only_what_is_old_and_ours_is_removed(tmp_path):
    cache = TensorCache(tmp_path / "latents")
    young, used, old = (TensorCache.key(name) for name in ("young", "used", "old"))
    for key in (young, used, old):
        cache.put(key, {"latents": torch.zeros(1000)})
    aged(cache.path(young), 29)
    aged(cache.path(used), 400)
    aged(cache.path(old), 31)
    strangers = [cache.folder / "ab" / "notes.safetensors", cache.folder / "ab" / f"{old}.txt",
                 tmp_path / "class_images" / "a" / f"{old}.safetensors"]
    writing, left = cache.path(old).with_name(".part-1.safetensors"), cache.path(old).with_name(".part-2.safetensors")
    for file in (*strangers, writing, left):
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_bytes(b"content")
    for file in strangers:
        aged(file, 1000)
    aged(left, 2)
    assert cache.use([used, TensorCache.key("never made")]) == {used}
    files, size = clean_caches(tmp_path, 30)
    assert files == 2 and size > 4000
    assert young in cache and used in cache and old not in cache
    assert all(file.exists() for file in strangers) and writing.exists() and not left.exists()


def test_runs_use_and_clean(tiny_bases, make_spec, squares, tmp_path):
    """What a run needs is marked as used however old it is; what none has used for the days of the spec goes."""
    spec = make_spec(tiny_bases["sd1"])
    train_run(spec, open_run(spec), silent)
    mine = [file for file in (tmp_path / "caches").glob("*/*/*.safetensors")]
    assert len(mine) == 8
    for file in mine:
        aged(file, 400)
    stranger = TensorCache(tmp_path / "caches" / "captions")
    for name, days in (("older", 8), ("newer", 6)):
        stranger.put(TensorCache.key(name), {"hidden": torch.zeros(1)})
        aged(stranger.path(TensorCache.key(name)), days)
    events, spec = [], make_spec(tiny_bases["sd1"], name="second", memory=specs.MemorySpec(cache_days=7))
    train_run(spec, open_run(spec), lambda event: events.append((event.event, getattr(event, "text", None))))
    assert not [event for event, _ in events if event == "encoding"]
    assert any(text and text.startswith("removed 1 cache file (") for _, text in events)
    assert all(file.exists() and time.time() - file.stat().st_mtime < 600 for file in mine)
    assert TensorCache.key("older") not in stranger and TensorCache.key("newer") in stranger


def test_a_run_of_many_days_keeps_its_files(tmp_path):
    """What it reads is marked again, but not at every reading."""
    cache, key = TensorCache(tmp_path), TensorCache.key("read")
    cache.put(key, {"latents": torch.zeros(1)})
    aged(cache.path(key), 0.4)
    before = cache.path(key).stat().st_mtime
    assert cache.get(key) and cache.path(key).stat().st_mtime == before
    aged(cache.path(key), 40)
    assert cache.get(key) and cache.clean(30) == (0, 0) and key in cache


def test_cleaning_waits_while_a_run_marks_its_files(tmp_path, monkeypatch):
    """An entry that is being marked is not removed meanwhile."""
    cache, keys = TensorCache(tmp_path), [TensorCache.key(number) for number in range(5)]
    for key in keys:
        cache.put(key, {"latents": torch.zeros(1)})
        aged(cache.path(key), 100)
    touch, cleaned = os.utime, []

    def slow(path, *arguments):
        if not cleaned:
            cleaned.append(threading.Thread(target=lambda: cleaned.append(TensorCache(tmp_path).clean(30))))
            cleaned[0].start()
        time.sleep(0.02)
        touch(path, *arguments)

    monkeypatch.setattr(tensor_cache.os, "utime", slow)
    assert cache.use(keys) == set(keys)
    cleaned[0].join()
    assert cleaned[1] == (0, 0) and all(key in cache for key in keys)


def test_cleaning_from_the_command_line(preloaded, tmp_path):
    def clean(*arguments) -> subprocess.CompletedProcess:
        command = [*preloaded, str(SCRIPT), "clean-caches", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    cache, key = TensorCache(tmp_path / "masks"), TensorCache.key("a")
    cache.put(key, {"mask": torch.zeros(1)})
    aged(cache.path(key), 12)
    assert clean(tmp_path).returncode == 0 and key in cache
    for arguments, words in ((["--days", "0.5", tmp_path], "--days is 0.5: it should be 1 or more"),
                             ([tmp_path / "masks"], "is no folder of caches")):
        refused = clean(*arguments)
        assert refused.returncode == 1 and words in refused.stderr
    cleaned = clean("--days", "10", tmp_path)
    assert cleaned.returncode == 0 and key not in cache and "removed 1 file," in cleaned.stdout


# ---- another fine-tune -------------------------------------------------------------------------------------------------

def encoded_by(spec) -> list[str]:
    """What a run of a step has encoded."""
    found = []
    train_run(spec, open_run(spec), lambda event: found.append(event.what) if event.event == "encoding" else None)
    return found


@pytest.mark.parametrize("layout", ["single files", "folders"])
def test_another_fine_tune_with_the_same_vae_and_text_encoders_encodes_nothing(layout, tiny_bases, make_spec, tmp_path):
    """Checkpoints that differ in a component encode anew what comes out of that component, and nothing else."""
    folder = Path(tiny_bases["sd1"].path)

    def variant(name: str, changed: str) -> specs.RunSpec:
        copy = Path(shutil.copytree(folder, tmp_path / name))
        [file] = [copy / part for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
                                           "vae/diffusion_pytorch_model.safetensors") if part.startswith(changed)]
        tensors = load_file(file)
        last = sorted(key for key in tensors if tensors[key].ndim == 2)[-1]
        tensors[last][-1, -1] += 0.125  # one number among all
        save_file(tensors, file, {"format": "pt"})
        path = copy if layout == "folders" else tiny.make_single_file("sd1", copy, tmp_path / f"{name}.safetensors")
        base = recognize(str(path), name, configs="" if layout == "folders" else str(folder))
        return make_spec(base, name=name, training=specs.TrainingSpec(steps=1, batch_size=2, resolution=64),
                         folders=specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "caches")))

    first, captions = encoded_by(variant("one", "unet")), len(list((tmp_path / "caches" / "captions").glob("*/*")))
    assert set(first) == {"images", "captions"} and captions
    other = variant("two", "unet")
    assert encoded_by(other) == []
    assert set(encoded_by(variant("three", "text_encoder"))) == {"captions"}
    assert set(encoded_by(variant("four", "vae"))) == {"images"}
    skipping = other.model_copy(update={"name": "five", "training": other.training.model_copy(update={"clip_skip": 2})})
    assert set(encoded_by(skipping)) == {"captions"}


def test_text_encoders_are_on_the_device_one_at_a_time(tiny_bases, monkeypatch):
    """In groups of captions, and what comes out is what all of them say together."""
    family, lent, most = families.get("sdxl"), [], []
    lend = Placement.lent

    @contextmanager
    def watched(self, module):
        lent.append(module)
        most.append(len(lent))
        with lend(self, module) as moved:
            yield moved
        lent.remove(module)

    monkeypatch.setattr(Placement, "lent", watched)
    monkeypatch.setattr(Placement, "captions_at_once", 2)
    text, captions = family.load_text(tiny_bases["sdxl"], torch.float32), ["a dog", "", "two cats"]
    placement = Placement.of(specs.MemorySpec(), CPU, torch.float32)
    found = list(encoding.encoded(family, text, captions, placement))
    assert most == [1, 1, 1, 1]  # two groups, two encoders
    for caption, conditioning in zip(captions, found, strict=True):
        whole = family.encode_captions(text, [caption])
        assert all(torch.equal(conditioning[name], whole[name]) for name in ("hidden", "pooled"))


@pytest.mark.parametrize("memory, trains_base, base, storage", [
    ({}, False, torch.bfloat16, "same"), ({}, True, torch.float32, "same"), ({"frozen_precision": "int8"}, False,
                                                                           torch.bfloat16, "int8")])
def test_where_components_live_is_decided_once(memory, trains_base, base, storage):
    placement = Placement.of(specs.MemorySpec(**memory), CPU, torch.bfloat16, trains_base)
    assert (placement.frozen, placement.base, placement.storage) == (torch.bfloat16, base, storage)
