"""Train the three small LoRAs of the demo base that the example workflow stacks: contour, sepia, pale.

    python scripts/make_example_loras.py [--steps N] [--work DIR]

Their images are the Noto emoji of tests/data/noto_control, changed by a rule each: a dark contour, other colors, less
contrast. So each LoRA has one effect, and a stack of them shows all three.
"""
import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "tests" / "data" / "noto_control"
PLACE = REPOSITORY / "example_loras" / "finetune_demo"
INK, DARK_BROWN, LIGHT_BROWN = (10, 10, 20), (62, 34, 12), (250, 226, 178)
RANK, BATCH, LEARNING_RATE = 2, 4, 3e-3


def background_of(image: Image.Image) -> Image.Image:
    """A mask of the white around the figure."""
    filled = image.copy()
    corners = [(0, 0), (image.width - 1, 0), (0, image.height - 1), (image.width - 1, image.height - 1)]
    for corner in corners:
        if filled.getpixel(corner) != (255, 0, 255):
            ImageDraw.floodfill(filled, corner, (255, 0, 255), thresh=40)
    different = ImageChops.difference(filled, Image.new("RGB", image.size, (255, 0, 255))).convert("L")
    return different.point(lambda value: 255 if value == 0 else 0)


def contour(image: Image.Image) -> Image.Image:
    figure = ImageOps.invert(background_of(image))
    edge = ImageChops.difference(figure, figure.filter(ImageFilter.MinFilter(11)))
    return Image.composite(Image.new("RGB", image.size, INK), image, edge)


def sepia(image: Image.Image) -> Image.Image:
    toned = ImageOps.colorize(image.convert("L"), DARK_BROWN, LIGHT_BROWN)
    return Image.composite(image, toned, background_of(image))


def pale(image: Image.Image) -> Image.Image:
    return Image.blend(image, Image.new("RGB", image.size, "white"), 0.55)


RULES = {"contour": contour, "sepia": sepia, "pale": pale}


def make_images(folder: Path, rule) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted(IMAGES.glob("*.png")):
        rule(Image.open(path).convert("RGB")).save(folder / path.name)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


def train(name: str, rule, steps: int, work: Path) -> Path:
    sys.path.insert(0, str(REPOSITORY))
    from trainers import spec as specs
    from trainers.data.manifest import scan_folder
    from trainers.events import silent
    from trainers.families.recognition import recognize
    from trainers.run_folder import open_run
    from trainers.training.run import train_run

    spec = specs.RunSpec(
        name=name, base=recognize(str(REPOSITORY / "demo_base"), "demo_base"),
        dataset=scan_folder(str(make_images(work / name, rule)), name),
        method=specs.LoraSpec(rank=RANK, alpha=RANK, targets="all with convolutions"),
        optimizer=specs.OptimizerSpec(learning_rate=LEARNING_RATE),
        schedule=specs.ScheduleSpec(name="cosine", warmup_steps=10),
        training=specs.TrainingSpec(steps=steps, batch_size=BATCH, resolution=64, caption_dropout=0.1),
        checkpoints=specs.CheckpointSpec(every=0), device="cpu",
        folders=specs.FolderSpec(runs=str(work / "runs"), caches=str(work / "caches")),
    )
    run = open_run(spec)
    if run.report is None:
        train_run(spec, run, silent)
    return run.artifact


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/example_loras", help="keeps images and runs")
    parser.add_argument("--only", choices=RULES, help="train one of them")
    options = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    for name, rule in RULES.items():
        if options.only in (None, name):
            file = train(name, rule, options.steps, options.work)
            shutil.copy(file, PLACE / f"{name}.safetensors")
            print(f"{name}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
