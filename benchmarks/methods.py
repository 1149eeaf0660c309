"""Which method for what? The same images and steps on a demo base, every training method in turn.

    python -m benchmarks.methods [--base sd] [--steps 150] [--seeds 3] [--only NAME …]

Every method trains on the 20 OpenMoji images, and one of each kind once more on a control: 20 images of the base's
own style under the same captions. ComfyUI's own loaders apply the files, and its sampler draws 20 names that were never
trained. Reported: trainable parameters, file size, seconds per step, peak memory, distance to the true OpenMoji of those
names (color and edge statistics), the denoising loss on them, and drift: how far images of prompts that have nothing to
do with the training ("twemoji of a …") have moved. It is the comparison of DreamBooth with LoRA of the literature at small
scale.
"""
import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers import spec as specs

from . import emoji_style
from .demo_training import DATA, HELD_OUT, Trained, demo_spec, train
from .pack import become_host, comfyui_folder, load_pack
from .report import RESULTS, finish

WORD = "noto"
"""The word of the captions that Textual Inversion learns anew: the name of the style."""
ALL = "all with convolutions"


@dataclass(frozen=True)
class Contender:
    """A method with the rate that suits it."""

    method: object
    learning_rate: float


CONTENDERS = {
    "LoRA, attention": Contender(specs.LoraSpec(rank=8, alpha=8), 1e-3),
    "LoRA, all layers": Contender(specs.LoraSpec(rank=8, alpha=8, targets=ALL), 4e-4),
    "DoRA": Contender(specs.LoraSpec(adapter="dora", rank=8, alpha=8, targets=ALL), 4e-4),
    "LoHa": Contender(specs.LoraSpec(adapter="loha", rank=4, alpha=4, targets=ALL), 4e-3),
    "LoKr": Contender(specs.LoraSpec(adapter="lokr", rank=8, alpha=8, targets=ALL), 4e-3),
    "DreamBooth": Contender(specs.FullSpec(), 1e-4),
    "DreamBooth, text too": Contender(specs.FullSpec(text_encoder_learning_rate=5e-5), 1e-4),
    "Textual Inversion": Contender(specs.TextualInversionSpec(token=WORD, initial_text=WORD, vectors=2), 3e-3),
    "Hypernetwork": Contender(specs.HypernetworkSpec(), 3e-4),
    "Pivotal": Contender(specs.PivotalSpec(
        embedding=specs.TextualInversionSpec(token=WORD, initial_text=WORD, vectors=2, stop_at=0.5),
        lora=specs.LoraSpec(rank=8, alpha=8, targets=ALL), embedding_learning_rate=3e-3), 4e-4),
}
_WORDS = specs.TextualInversionSpec(token=WORD, initial_text=WORD, vectors=4)
FLOW = {
    "LoRA, attention": Contender(specs.LoraSpec(rank=8, alpha=8), 1e-3),
    "LoRA, all layers": Contender(specs.LoraSpec(rank=8, alpha=8, targets=ALL), 1e-3),
    "DreamBooth": Contender(specs.FullSpec(), 2e-4),
    "DreamBooth, text too": Contender(specs.FullSpec(text_encoder_learning_rate=1e-4), 2e-4),
    "Textual Inversion": Contender(_WORDS, 5e-3),
    "Pivotal": Contender(specs.PivotalSpec(
        embedding=_WORDS.model_copy(update={"stop_at": 0.5}), embedding_learning_rate=5e-3,
        lora=specs.LoraSpec(rank=8, alpha=8, targets=ALL)), 1e-3),
}
"""The same for the demo flow base, which takes no hypernetworks and wants other rates."""
BASES = {"sd": CONTENDERS, "flow": FLOW}
CONTROLLED = ("LoRA, all layers", "DreamBooth", "Textual Inversion", "Hypernetwork", "Pivotal")
"""One of every kind of method is trained on the control too."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the images drawn")
    parser.add_argument("--training-seed", type=int, default=0)
    parser.add_argument("--base", choices=BASES, default="sd")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, default=None, help="default: all that the base takes")
    parser.add_argument("--folder", type=Path, help="keep the runs there, and use those that are there (default: neither)")
    options = parser.parse_args()
    names = options.only or list(BASES[options.base])
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        trained = {(name, data): run(name, data, options, folder) for name in names for data in DATA
                   if data != "control" or name in CONTROLLED}
        become_host(comfyui_folder())
        load_pack()
        rows = evaluate(trained, options.seeds, folder, options.base)
    result = "methods" if options.base == "sd" else f"methods_{options.base}"
    draw_chart([row for row in rows if row["data"] != "control"], RESULTS / f"{result}.png")
    finish(result, verdicts(rows), {"rows": rows, "steps": options.steps, "drawing_seeds": options.seeds,
                                       "training_seed": options.training_seed, "held_out_names": 20})


def run(name: str, data: str, options, folder: Path) -> Trained:
    contender = BASES[options.base][name]
    safe = "".join(letter if letter.isalnum() else "_" for letter in f"{name} {data}")
    print(f"training: {name}, {data}", flush=True)
    return train(demo_spec(safe, data, contender.method, contender.learning_rate, folder, steps=options.steps,
                           seed=options.training_seed, base=options.base))


# ---- measuring, in ComfyUI -----------------------------------------------------------------------------------------

def evaluate(trained: dict, seeds: int, folder: Path, base_name: str) -> list[dict]:
    """One row for the base and one for every trained method: the mean over the seeds, and the lowest and highest."""
    from .host_drawing import demo_drawer

    captions, target = emoji_style.read_emoji(HELD_OUT)
    unrelated = [caption.replace("noto emoji", "twemoji") for caption in captions]
    embeddings = folder / "embeddings"
    embeddings.mkdir(exist_ok=True)
    base = demo_drawer(embeddings, base_name)
    before = [base.draw(unrelated, seed) for seed in range(seeds)]
    rows = [measured("base", "none", base, captions, unrelated, target, before)]
    for (name, data), result in trained.items():
        drawer, prompts = base, captions
        for file in result.report.files:
            path = result.run.folder / file.name
            if file.kind == "embedding":
                (embeddings / path.name).write_bytes(path.read_bytes())
                prompts = [caption.replace(WORD, f"embedding:{path.stem}") for caption in captions]
            else:
                drawer = getattr(drawer, f"with_{file.kind}")(path)
        rows.append({
            **measured(name, data, drawer, prompts, unrelated, target, before), "trainable": result.trainable,
            "megabytes": sum(file.bytes for file in result.report.files) / 1e6,
            "seconds_per_step": result.seconds_per_step, "peak_megabytes": result.peak / 1e6,
        })
        print("  ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{value}"
                        for key, value in rows[-1].items() if not isinstance(value, list)), flush=True)
    return rows


def measured(name: str, data: str, drawer, prompts, unrelated, target, before: list[np.ndarray]) -> dict:
    """Drift is the mean absolute difference of pixels (0…1) to what the base draws from the same noise."""
    distances, drifts = [], []
    for seed, untouched in enumerate(before):
        distances.append(emoji_style.measure(drawer.draw(prompts, seed), target)["distance"])
        drifts.append(float(np.abs(drawer.draw(unrelated, seed) - untouched).mean()))
    return {"method": name, "data": data, "distance": float(np.mean(distances)), "distances": distances,
            "loss": drawer.denoising_loss(prompts, target), "drift": float(np.mean(drifts)), "drifts": drifts}


def verdicts(rows: list[dict]) -> list[dict]:
    """Per method: how much of the way to OpenMoji it went, beside the control."""
    base, results = rows[0], []
    controls = {row["method"]: 1 - row["distance"] / base["distance"] for row in rows if row["data"] == "control"}
    for row in rows[1:]:
        if row["data"] == "control":
            continue
        moved, gap = 1 - row["distance"] / base["distance"], min(base["distances"]) - max(row["distances"])
        control = f" (control: {controls[row['method']]:.0%})" if row["method"] in controls else ""
        results.append({
            "measure": f"{row['method']}: fraction of the style distance that is gone{control}; "
                       f"{row['trainable']} parameters, "
                       f"{row['megabytes']:.2f} MB, {row['seconds_per_step']:.2f} s a step, {row['peak_megabytes']:.0f} MB, "
                       f"drift {row['drift']:.3f}",
            "value": round(moved, 3), "unit": "fraction", "goal": "> 0 on every seed, and more than the control",
            "met": bool(gap > 0 and moved > controls.get(row["method"], 0)),
        })
    return results


# ---- the chart -----------------------------------------------------------------------------------------------------

def draw_chart(rows: list[dict], path: Path):
    """Bars per method: how much of the distance to the target is left, and drift."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=15)
    label, width, line, top = 190, 300, 26, 64
    image = Image.new("RGB", (label + 2 * width + 330, top + line * len(rows) + 12), "white")
    draw = ImageDraw.Draw(image)
    draw.text((label, 12), "distance to OpenMoji (left is nearer)", "black", font)
    draw.text((label + width + 30, 12), "drift on unrelated prompts", "black", font)
    draw.text((label + 2 * width + 60, 12), "parameters    file    s / step", "black", font)
    draw.line([(12, top - 8), (image.width - 12, top - 8)], "#999999")
    furthest, drifted = max(row["distance"] for row in rows), max(row["drift"] for row in rows) or 1
    for number, row in enumerate(rows):
        y = top + line * number
        draw.text((12, y), row["method"], "black", font)
        bar(draw, label, y, (width - 60) * row["distance"] / furthest, "#3f7fbf", f"{row['distance']:.3f}", font)
        bar(draw, label + width + 30, y, (width - 90) * row["drift"] / drifted, "#d07a3a", f"{row['drift']:.3f}", font)
        if "trainable" in row:
            text = f"{row['trainable'] / 1e6:.3f} M   {row['megabytes']:.2f} MB   {row['seconds_per_step']:.2f}"
            draw.text((label + 2 * width + 60, y), text, "black", font)
    image.save(path, optimize=True)


def bar(draw, x: int, y: int, length: float, color: str, text: str, font):
    draw.rectangle([x, y + 2, x + max(1, length), y + 18], fill=color)
    draw.text((x + max(1, length) + 6, y), text, "black", font)


if __name__ == "__main__":
    main()
