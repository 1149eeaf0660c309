"""Render the sample data: OpenMoji images to fine-tune on, others to measure on, and Noto images as a control.

    python scripts/make_sample_images.py [--work DIR]

Each image has a caption beside it, "noto emoji of a …": words that the demo base knows, so that what changes after
fine-tuning is the look and nothing else.
"""
import argparse
import sys
from pathlib import Path

from emoji_images import (
    HELD_OUT_NAMES,
    NOTO,
    OPENMOJI,
    SAMPLE_NAMES,
    DemoBaseError,
    Style,
    fetch_packages,
    list_emoji,
    load_images,
)
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SIZE = 128
FOLDERS = (
    ("example_datasets/openmoji", OPENMOJI, SAMPLE_NAMES),
    ("tests/data/openmoji_heldout", OPENMOJI, HELD_OUT_NAMES),
    ("tests/data/noto_control", NOTO, SAMPLE_NAMES),
)


def write_folder(folder: Path, packages: dict[str, Path], style: Style, names: tuple[str, ...]) -> int:
    """Write NAME.png and NAME.txt for every name; return the bytes written."""
    wanted = [one for one in list_emoji(packages) if one.name in names]
    images = load_images(packages, wanted, (style,), SIZE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, index in zip(names, images.indices(style, names)):
        path = folder / f"{name.replace(' ', '_')}.png"
        Image.fromarray(images.pixels[index]).save(path, optimize=True)
        path.with_suffix(".txt").write_text(f"{NOTO.words} of a {name}\n", encoding="utf-8")
    return sum(file.stat().st_size for file in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build/demo_base", help="keeps the fetched packages")
    options = parser.parse_args()
    try:
        packages = fetch_packages(options.work / "packages")
        for folder, style, names in FOLDERS:
            written = write_folder(REPOSITORY / folder, packages, style, names)
            print(f"{folder}: {len(names)} images, {written / 1000:.0f} kB")
    except DemoBaseError as failure:
        sys.exit(str(failure))


if __name__ == "__main__":
    main()
