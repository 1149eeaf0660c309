"""Does prior preservation do its work? Drift on class prompts with and without class images.

    python -m benchmarks.prior_preservation [--seeds 3] [--steps 120]

DreamBooth on the demo base: OpenMoji under captions with the rare word "ohwx" in front, for example "ohwx, noto emoji of a
bell". What must not change is the class: "noto emoji of a …". For every seed the base is trained twice, without class
images and with 20 of the base's own style; ComfyUI draws 20 class prompts that neither saw, from the same noise as the
untouched base.
"""
import argparse
import tempfile
from pathlib import Path

import numpy as np

from trainers import spec as specs
from trainers.data.manifest import scan_folder

from . import emoji_style
from .demo_training import DATA, HELD_OUT, demo_spec, train
from .pack import become_host, comfyui_folder, load_pack
from .report import finish

TRIGGER, LEARNING_RATE = "ohwx", 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--folder", type=Path, help="keep the runs there, and use those that are there (default: neither)")
    options = parser.parse_args()
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    priors = {"without": None, "with": specs.PriorSpec(dataset=scan_folder(str(DATA["control"]), "class"))}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        trained = {}
        for seed in range(options.seeds):
            for name, prior in priors.items():
                print(f"training {name} class images, seed {seed}", flush=True)
                trained[name, seed] = train(demo_spec(
                    f"{name}_{seed}", "openmoji", specs.FullSpec(), LEARNING_RATE, folder, steps=options.steps,
                    batch_size=8, seed=seed, trigger=TRIGGER, prior=prior))
        become_host(comfyui_folder())
        load_pack()
        rows = measure(trained, folder)
    finish("prior_preservation", verdicts(rows), {"rows": rows, "steps": options.steps, "learning_rate": LEARNING_RATE})


def measure(trained: dict, folder: Path) -> list[dict]:
    """Drift is the mean absolute difference of pixels (0…1) to the base's images of the class prompts; `style` how far
    their statistics are from the base's; `subject` how far images with the trigger are from OpenMoji's."""
    from .host_drawing import demo_drawer

    captions, target = emoji_style.read_emoji(HELD_OUT)
    base, rows = demo_drawer(folder), []
    for (name, seed), result in trained.items():
        tuned = base.with_checkpoint(result.run.artifact)
        before, after = base.draw(captions, seed), tuned.draw(captions, seed)
        subject = tuned.draw([f"{TRIGGER}, {caption}" for caption in captions], seed)
        rows.append({
            "prior": name, "seed": seed, "drift": float(np.abs(after - before).mean()),
            "style": emoji_style.measure(after, before)["distance"],
            "subject": emoji_style.measure(subject, target)["distance"],
            "subject_of_base": emoji_style.measure(before, target)["distance"],
        })
        print("  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in rows[-1].items()), flush=True)
    return rows


def verdicts(rows: list[dict]) -> list[dict]:
    results = []
    for name, words in (("drift", "drift of pixels on class prompts"), ("style", "drift of the style on class prompts")):
        values = {prior: [row[name] for row in rows if row["prior"] == prior] for prior in ("without", "with")}
        results.append({
            "measure": f"{words}: {np.mean(values['without']):.3f} without class images, {np.mean(values['with']):.3f} "
                       "with; gap between the ranges", "unit": "", "goal": "> 0",
            "value": round(min(values["without"]) - max(values["with"]), 4),
            "met": bool(min(values["without"]) > max(values["with"])),
        })
    learned = [row["subject_of_base"] - row["subject"] for row in rows if row["prior"] == "with"]
    results.append({"measure": "with class images the subject is still learned: least move towards it over the seeds",
                    "value": round(min(learned), 4), "unit": "style distance", "goal": "> 0", "met": bool(min(learned) > 0)})
    return results


if __name__ == "__main__":
    main()
