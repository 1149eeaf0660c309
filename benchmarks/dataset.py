"""How fast is a folder of images encoded and cached, does memory grow with it, and does a second run start at once?

    python -m benchmarks.dataset [--images 2000] [--few 20] [--repeats 5] [--full-size] [--keep FOLDER]

Images of mixed sizes (400 to 2000 pixels a side, JPEG and PNG) against a plain loop: open by PIL, convert to RGB, resize
by Lanczos, cut, encode by the VAE, one by one. Both in one process, in turns, on parts of the folder, each into a cache of
its own or into a list. The VAE is the demo base's at 64 pixels, or a random one of SD 1.x's size at 512 pixels. Memory
is the peak of a process of its own that caches and trains for a few steps; the second run has another name and their cache.
"""
import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .measuring import Summary, forget_peak_resident, library_versions, peak_resident
from .pack import ROOT
from .report import finish

SPEED_GOAL, GROWTH_GOAL = 2.0, 50e6
PART = 30
"""Images that one repeat encodes."""
STEPS = 4


# ---- images ------------------------------------------------------------------------------------------------------

def make_images(folder: Path, count: int) -> Path:
    """Smooth colors with detail on top, so that files have the sizes of photographs; two thirds JPEG."""
    import numpy
    from PIL import Image, ImageFilter

    folder.mkdir(parents=True, exist_ok=True)
    grain = Image.effect_noise((2500, 2500), 40).filter(ImageFilter.BoxBlur(1)).convert("RGB")

    def make(number: int):
        draw = numpy.random.default_rng(number)
        width, height = (int(side) for side in draw.integers(400, 2001, 2))
        left, top = (int(place) for place in draw.integers(0, 500, 2))
        coarse = Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=numpy.uint8)).resize((width, height), 3)
        image = Image.blend(coarse, grain.crop((left, top, left + width, top + height)), 0.2)
        if number % 3:
            image.save(folder / f"{number:05}.jpg", quality=90)
        else:
            image.save(folder / f"{number:05}.png", compress_level=1)
        (folder / f"{number:05}.txt").write_text(f"image {number % 50} of many, red, round, small", encoding="utf-8")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, range(count)))
    return folder


def manifest_of(folder: Path):
    """The images as a dataset, from their headers alone: nothing here measures how a folder is scanned."""
    from PIL import Image

    from trainers.spec import DatasetImage, DatasetSpec

    files = [file for file in sorted(folder.iterdir()) if file.suffix != ".txt"]
    return DatasetSpec(name="images", images=tuple(
        DatasetImage(path=str(file), name=file.name, caption=file.with_suffix(".txt").read_text(encoding="utf-8"),
                     size=Image.open(file).size, digest=hashlib.sha256(file.name.encode()).hexdigest()) for file in files))


def make_base(folder: Path, full_size: bool):
    from trainers.families.recognition import recognize

    if not full_size:
        return recognize(str(ROOT / "demo_base"), "demo base")
    from .full_size import make_checkpoint

    path = folder / "random.safetensors"
    return recognize(str(path if path.exists() else make_checkpoint(path)), "random SD 1.x")


def spec_of(name: str, base, dataset, folder: Path, resolution: int):
    from trainers import spec as specs

    return specs.RunSpec(
        name=name, base=base, dataset=dataset, method=specs.LoraSpec(rank=2, alpha=2),
        training=specs.TrainingSpec(steps=STEPS, batch_size=2, resolution=resolution),
        checkpoints=specs.CheckpointSpec(every=0), device="cpu",
        folders=specs.FolderSpec(runs=str(folder / "runs"), caches=str(folder / f"caches of {name}")))


# ---- speed ---------------------------------------------------------------------------------------------------------

def compare_speed(base, dataset, resolution: int, repeats: int, folder: Path) -> dict:
    """Images per second of both ways, and how far their latents are apart."""
    import torch

    from trainers import families
    from trainers.caches.encoding import LatentCache
    from trainers.data.images.augmentation import View
    from trainers.data.images.buckets import bucket_sizes, fit
    from trainers.events import silent

    family = families.get(base.family)
    form, vae, sizes = family.latent_format(base), family.load_vae(base), bucket_sizes(resolution)

    class Loaded:
        """The family with its VAE in memory: neither way's time holds the loading."""

        def __getattr__(self, name):
            return getattr(family, name)

        def load_vae(self, base):
            return vae

    def ours(part, turn: int):
        cache = LatentCache(spec_of(f"turn {turn}", base, dataset, folder, resolution), Loaded(), form)
        views = [(image, View(fit(image.size, sizes))) for image in part]
        cache.fill(views, torch.device("cpu"), silent)
        return lambda: [cache.reader(image, view)() for image, view in views]

    def plain(part, turn: int):
        latents = [family.encode_images(vae, plain_pixels(image, fit(image.size, sizes))[None], form)[0]
                   for image in part]
        return lambda: latents

    seconds, differences = {"ours": [], "plain": []}, []
    for turn in range(repeats + 1):  # the first warms up
        images = dataset.images
        start = turn * PART % max(1, len(images) - PART + 1)
        part, found = images[start:start + PART], {}
        ways = [("ours", ours), ("plain", plain)]
        for name, way in ways if turn % 2 else ways[::-1]:
            gc.collect()
            began = time.perf_counter()
            found[name] = way(part, turn)
            if turn:
                seconds[name].append((time.perf_counter() - began) / len(part))
        for one, other in zip(found["ours"](), found["plain"](), strict=True):
            differences.append(float((one - other).square().mean().sqrt() / other.std()))
    ratios = [slow / fast for slow, fast in zip(seconds["plain"], seconds["ours"])]
    return {"images_per_second": {name: 1 / Summary.of(values).median for name, values in seconds.items()},
            "ratio": Summary.of(ratios).as_dict(), "largest_relative_difference": max(differences)}


def plain_pixels(image, crop):
    """What anybody would write."""
    import numpy
    import torch
    from PIL import Image

    opened = Image.open(image.path).convert("RGB").resize(crop.resized, Image.Resampling.LANCZOS)
    left, top = crop.left, crop.top
    opened = opened.crop((left, top, left + crop.bucket[0], top + crop.bucket[1]))
    return torch.from_numpy(numpy.array(opened)).permute(2, 0, 1).float() / 127.5 - 1


# ---- memory and the second run -------------------------------------------------------------------------------------

def train_in_child(spec_path: Path) -> dict:
    """Cache and train in a process of its own; what it says of itself."""
    result = subprocess.run([sys.executable, "-m", f"{__package__}.dataset", "--child", str(spec_path)], cwd=ROOT,
                            capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the run failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def child(spec_path: Path):
    from trainers.files import read_json
    from trainers.run_folder import open_run
    from trainers.spec import RunSpec
    from trainers.training.run import train_run

    facts = {"encoded": 0, "until_first_step": None}
    spec = RunSpec.model_validate(read_json(spec_path))
    run, began = open_run(spec), time.perf_counter()

    def emit(event):
        if event.event == "encoding":
            facts["encoded"] += 1
        if event.event == "model":
            facts["peak_of_caching"] = peak_resident()
        if event.event == "step" and event.step == 1:
            facts["until_first_step"] = time.perf_counter() - began

    forget_peak_resident()
    train_run(spec, run, emit)
    print(json.dumps({**facts, "peak": peak_resident()}))


def compare_runs(base, many, few, resolution: int, folder: Path) -> dict:
    """Peaks of runs on many and on few images, and a second run on many, under another name, with the same cache."""
    results = {}
    for name, dataset, caches in (("few", few, "few"), ("many", many, "many"), ("second", many, "many")):
        spec = spec_of(name, base, dataset, folder, resolution)
        spec = spec.model_copy(update={"folders": spec.folders.model_copy(update={"caches": str(folder / caches)})})
        path = folder / f"{name}.json"
        path.write_text(spec.model_dump_json(), encoding="utf-8")
        results[name] = train_in_child(path)
    return results


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=0, help="default: 2000, at full size 60")
    parser.add_argument("--few", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=0, help="default: 8, at full size 2")
    parser.add_argument("--full-size", action="store_true", help="a random VAE of SD 1.x's size at 512 pixels; no runs")
    parser.add_argument("--keep", type=Path, help="folder for the images, to use them again")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(options.child)
        return
    count = options.images or (60 if options.full_size else 2000)
    repeats, resolution = options.repeats or (2 if options.full_size else 8), 512 if options.full_size else 64
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = (options.keep or folder) / f"images {count}"
        if not images.exists():
            make_images(images, count)
        many = manifest_of(images)
        few = many.model_copy(update={"images": many.images[:options.few]})
        base = make_base(folder, options.full_size)
        speed = compare_speed(base, many, resolution, repeats, folder)
        ratio = speed["ratio"]["median"]
        results = [{"measure": "images per second against a plain loop", "value": round(ratio, 3), "unit": "times",
                    "goal": SPEED_GOAL, "met": ratio >= SPEED_GOAL}]
        details = {"images": count, "resolution": resolution, "processors": os.cpu_count(), "speed": speed,
                   "versions": library_versions("torch", "diffusers", "Pillow")}
        if not options.full_size:
            runs = compare_runs(base, many, few, resolution, folder)
            growth, second = runs["many"]["peak"] - runs["few"]["peak"], runs["second"]
            results += [
                {"measure": f"peak memory with {count} images above that with {options.few}",
                 "value": round(growth / 1e6, 1), "unit": "MB", "goal": GROWTH_GOAL / 1e6, "met": growth < GROWTH_GOAL},
                {"measure": "images and captions that a second run encodes", "value": second["encoded"], "unit": "",
                 "goal": 0, "met": second["encoded"] == 0},
                {"measure": "seconds until the first step of a second run", "value": round(second["until_first_step"], 2),
                 "unit": "s", "goal": None, "met": True},
            ]
            details["runs"] = runs
    name = "dataset_full_size" if options.full_size else "dataset"
    finish(name, results, details)


if __name__ == "__main__":
    main()
