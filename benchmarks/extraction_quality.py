"""How near do images of base + extracted LoRA come to DreamBooth's own, by rank and by file size?

    python -m benchmarks.extraction_quality [--steps 120]

DreamBooth on the demo base (OpenMoji images), then extraction at ranks 4 … 128. All draw the same prompts from the same
noise with ComfyUI's own loaders; the distance is the root mean square difference of pixels to DreamBooth's images, as a
fraction of the base's. Draws a chart into results/.
"""
import argparse
import itertools
import tempfile
from pathlib import Path

from .pack import become_host, comfyui_folder, load_pack
from .report import RESULTS, finish

RANKS = (4, 8, 16, 32, 64, 128)
THINGS = ("lion", "penguin", "octopus", "strawberry", "cactus", "rocket", "castle")
PROMPTS = [f"noto emoji of a {thing}" for thing in THINGS]
SEEDS = 4
WIDTH, HEIGHT, MARGIN = 460, 380, 70


def chart(rows: list[dict]):
    """Distance against rank, and against megabytes, side by side; both axes below are logarithmic."""
    from math import log2

    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (2 * WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    highest = max(row["distance"] for row in rows) * 1.15
    for place, (field, title) in enumerate((("rank", "rank"), ("megabytes", "file size in MB"))):
        left, right, top, bottom = place * WIDTH + MARGIN, (place + 1) * WIDTH - 24, 40, HEIGHT - MARGIN
        low, high = log2(rows[0][field]), log2(rows[-1][field])
        for step in range(5):
            y = bottom - (bottom - top) * step / 4
            draw.line([left, y, right, y], (225, 225, 225))
            draw.text((left - 8, y), f"{highest * step / 4:.0%}", (40, 40, 40), font, anchor="rm")
        points = [(left + (right - left) * (log2(row[field]) - low) / (high - low),
                   bottom - (bottom - top) * row["distance"] / highest) for row in rows]
        draw.line(points, (31, 98, 189), 3)
        for (x, y), row in zip(points, rows):
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], (31, 98, 189))
            draw.text((x, bottom + 14), f"{row[field]:.3g}", (40, 40, 40), font, anchor="mm")
        draw.text(((left + right) / 2, HEIGHT - 26), title, (40, 40, 40), font, anchor="mm")
    draw.text((MARGIN, 18), "distance from DreamBooth's images, of the base's distance", (40, 40, 40), font, anchor="lm")
    image.save(RESULTS / "extraction_quality.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    from trainers.spec import FolderSpec, FullSpec
    from trainers.spec.file_tasks import ExtractionSpec
    from trainers.tools.extraction import extract

    from .demo_training import demo_spec, train

    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        print("training DreamBooth ...", flush=True)
        trained = train(demo_spec("booth", "openmoji", FullSpec(), 3e-4, folder, steps=steps))
        base = trained.run.read_spec().base
        for rank in RANKS:
            spec = ExtractionSpec(name=f"rank_{rank}", tuned=str(trained.run.artifact), base=base.path, rank=rank,
                                  folders=FolderSpec(runs=name, caches=name), device="cpu")
            report = extract(spec, folder / f"rank_{rank}.safetensors")
            rows.append({"rank": rank, "megabytes": report.bytes / 1e6, "kept": report.kept["fp16"]})
        load_pack()
        become_host(comfyui_folder())
        import numpy as np

        from .host_drawing import demo_drawer

        def images(drawer) -> np.ndarray:
            return np.concatenate([drawer.draw(PROMPTS, seed) for seed in range(SEEDS)])

        plain = demo_drawer(folder)
        wanted = images(plain.with_checkpoint(trained.run.artifact))

        def distance(drawer) -> float:
            return float(np.sqrt(np.square(images(drawer) - wanted).mean()))

        whole = distance(plain)
        for row in rows:
            row["distance"] = distance(plain.with_lora(folder / f"rank_{row['rank']}.safetensors")) / whole
            print(row, flush=True)
    RESULTS.mkdir(exist_ok=True)
    chart(rows)
    results = [{"measure": f"distance at rank {row['rank']} ({row['megabytes']:.2f} MB, kept {row['kept']:.1%})",
                "value": round(row["distance"], 4), "unit": "of the base's distance", "goal": "", "met": True}
               for row in rows]
    falls = all(later["distance"] <= earlier["distance"] + 0.02 for earlier, later in itertools.pairwise(rows))
    results.append({"measure": "falls with the rank", "value": falls, "unit": "", "goal": "True", "met": falls})
    finish("extraction_quality", results, {"rows": rows, "base_distance": whole, "steps": steps})


if __name__ == "__main__":
    main()
