"""Does training teach what it should? OpenMoji on the demo base, against a control, on names never trained.

    python -m benchmarks.learning [--seeds 3] [--steps 150]

For every seed a LoRA is trained by the engine on the 20 example images, and a control on 20 images of the base's
own style with the same captions. diffusers loads both files and draws 20 other names. The true OpenMoji images of
those names are the target. Prints a table, draws a sheet, and ends with one JSON line.
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainers import spec as specs

from . import emoji_style
from .demo_training import HELD_OUT, demo_spec, train
from .pack import ROOT
from .report import finish

LOWER_IS_NEARER = ("loss", "distance")


def load_pipeline():
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(ROOT / "demo_base", safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2)
    return pipeline.to("cpu")


def train_lora(data: str, seed: int, steps: int, learning_rate: float, folder: Path) -> Path:
    """Train with the settings of the template without any download; returns the LoRA file."""
    method = specs.LoraSpec(rank=8, alpha=8, targets="all with convolutions")
    return train(demo_spec(f"{data}_{seed}", data, method, learning_rate, folder, steps=steps, seed=seed)).run.artifact


def evaluate(pipeline, captions: list[str], target: np.ndarray, seed: int) -> tuple[dict, np.ndarray]:
    images = emoji_style.draw_images(pipeline, captions, seed)
    loss = emoji_style.denoising_loss(pipeline, captions, target)
    return {"loss": loss, **emoji_style.measure(images, target)}, images


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    options = parser.parse_args()
    captions, target = emoji_style.read_emoji(HELD_OUT)
    pipeline, rows, sheet = load_pipeline(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for state in ("before", "openmoji", "control"):
                if state != "before":
                    file = train_lora(state, seed, options.steps, options.learning_rate, Path(folder))
                    pipeline.load_lora_weights(str(file))
                values, images = evaluate(pipeline, captions, target, seed)
                if state != "before":
                    pipeline.unload_lora_weights()
                rows.append({"state": state, "seed": seed, **values})
                sheet[state, seed] = images
                print("  ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{value!s:9}"
                                for name, value in rows[-1].items()), flush=True)
    draw_sheet(sheet, target, ROOT / "benchmarks" / "results" / "learning.png")
    true = emoji_style.measure(target, target)
    finish("learning", verdicts(rows, true), {"rows": rows, "target": true, "held_out_names": len(captions),
                                              "steps": options.steps, "learning_rate": options.learning_rate})


def verdicts(rows: list[dict], target: dict) -> list[dict]:
    """Per measure: the gap between the ranges before and after, in the direction of the target; and where the control
    went, as a fraction of the way from before to the target (negative: away)."""
    results = []
    for name in ("loss", "edges", "dark", "distance"):
        values = {state: [row[name] for row in rows if row["state"] == state] for state in ("before", "openmoji", "control")}
        towards_lower = name in LOWER_IS_NEARER or target[name] < np.mean(values["before"])
        gap = (min(values["before"]) - max(values["openmoji"]) if towards_lower
               else min(values["openmoji"]) - max(values["before"]))
        moved = {state: np.mean(values[state]) - np.mean(values["before"]) for state in ("openmoji", "control")}
        results += [
            {"measure": f"{name}: {np.mean(values['before']):.3f} before, {np.mean(values['openmoji']):.3f} after; "
                        "gap between the ranges", "value": round(float(gap), 4), "unit": "", "goal": "> 0",
             "met": bool(gap > 0)},
            {"measure": f"{name}: control's move as a fraction of OpenMoji's", "unit": "",
             "value": round(float(moved["control"] / moved["openmoji"]), 3), "goal": "< 0.25",
             "met": bool(moved["control"] / moved["openmoji"] < 0.25)},
        ]
    return results


def draw_sheet(sheet: dict, target: np.ndarray, path: Path, columns: int = 12):
    """Rows of the first seed: before, after, control, and the true images."""
    rows = [sheet["before", 0], sheet["openmoji", 0], sheet["control", 0], target]
    values = np.concatenate([np.concatenate(list(row[:columns]), axis=1) for row in rows], axis=0)
    image = Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))
    image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS).save(path, optimize=True)


if __name__ == "__main__":
    main()
