"""How far do a new word, and a word with a LoRA, go towards a style that the base does not know?

    python -m benchmarks.learning_words [--methods word pivotal] [--seeds 0 1 2]

For every method and seed the engine trains with the settings of the example workflow on its 20 OpenMoji images, and a
control on 20 images of the base's own style with the same captions. diffusers loads the files and draws 20 names that were
never trained, once with "noto emoji of a …" and once with the new word in place of "noto". The measure is the distance of
the mean color and edge statistics to those of the true OpenMoji images of these names.
"""
import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from trainers import spec as specs
from trainers.data.manifest import scan_folder
from trainers.events import silent
from trainers.families.recognition import recognize
from trainers.run_folder import open_run
from trainers.training.run import train_run

from . import emoji_style
from .demo_training import DATA, HELD_OUT
from .learning import load_pipeline
from .pack import ROOT
from .report import finish

WORKFLOWS = {"word": "5 Train Textual Inversion", "pivotal": "6 Train Pivotal Tuning"}
LATE = "embedding_training_fraction embedding_norm cosine_weight"
WIDGETS = {
    "word": "name preset placeholder_token vectors initializer_text steps learning_rate batch_size resolution "
            f"preview_prompts training_seed {LATE} file_precision gradient_accumulation caption_dropout",
    "pivotal": "name preset placeholder_token vectors initializer_text steps learning_rate embedding_learning_rate rank "
               f"batch_size resolution preview_prompts alpha targets text_encoder_learning_rate training_seed {LATE} "
               "gradient_accumulation caption_dropout",
}
"""The widgets of the Train nodes, in the order in which workflows keep their values."""


def settings_of(method: str) -> dict:
    """The example workflow's values for the Train node."""
    workflow = json.loads((ROOT / "example_workflows" / f"{WORKFLOWS[method]}.json").read_text(encoding="utf-8"))
    values = next(node["widgets_values"] for node in workflow["nodes"] if node["type"].startswith("FineTuneTrain"))
    return dict(zip(WIDGETS[method].split(), values))


def train(method: str, data: str, seed: int, folder: Path):
    """Returns the finished run."""
    widgets = settings_of(method)
    word = specs.TextualInversionSpec(
        token=widgets["placeholder_token"], vectors=widgets["vectors"], initial_text=widgets["initializer_text"],
        stop_at=widgets["embedding_training_fraction"], norm=widgets["embedding_norm"],
        cosine_weight=widgets["cosine_weight"])
    chosen = word if method == "word" else specs.PivotalSpec(
        embedding=word, embedding_learning_rate=widgets["embedding_learning_rate"],
        lora=specs.LoraSpec(rank=widgets["rank"], alpha=widgets["alpha"], targets=widgets["targets"]))
    spec = specs.RunSpec(
        name=f"{method}_{data}_{seed}", base=recognize(str(ROOT / "demo_base"), "demo_base"),
        dataset=scan_folder(str(DATA[data]), data), method=chosen,
        optimizer=specs.OptimizerSpec(learning_rate=widgets["learning_rate"]),
        schedule=specs.ScheduleSpec(name="cosine", warmup_steps=10),
        training=specs.TrainingSpec(steps=widgets["steps"], batch_size=widgets["batch_size"], resolution=64,
                                    caption_dropout=widgets["caption_dropout"], seed=seed),
        checkpoints=specs.CheckpointSpec(every=0),
        folders=specs.FolderSpec(runs=str(folder / "runs"), caches=str(folder / "caches")), device="cpu",
    )
    run = open_run(spec)
    train_run(spec, run, silent)
    return run


def drawn_with(run, captions: list[str], seed: int) -> np.ndarray:
    """Images of the captions with the run's word in place of "noto", and with its LoRA where it has one."""
    files, pipeline = {file.kind: run.folder / file.name for file in run.report.files}, load_pipeline()
    pipeline.load_textual_inversion(str(files["embedding"]), token="learnedword")
    if "lora" in files:
        pipeline.load_lora_weights(str(files["lora"]))
    return emoji_style.draw_images(pipeline, [caption.replace("noto", "learnedword") for caption in captions], seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=WORKFLOWS, default=list(WORKFLOWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    captions, target = emoji_style.read_emoji(HELD_OUT)
    rows = []
    for seed in options.seeds:
        before = emoji_style.measure(emoji_style.draw_images(load_pipeline(), captions, seed), target)
        rows.append({"method": "none", "data": "none", "seed": seed, **before})
        print(rows[-1], flush=True)
        for method in options.methods:
            for data in DATA:
                with tempfile.TemporaryDirectory() as folder:
                    run = train(method, data, seed, Path(folder))
                    images = drawn_with(run, captions, seed)
                rows.append({"method": method, "data": data, "seed": seed, **emoji_style.measure(images, target)})
                print(rows[-1], flush=True)
    finish("learning_words", verdicts(rows, options.methods),
           {"rows": rows, "held_out_names": len(captions),
            "settings": {method: settings_of(method) for method in options.methods}})


def verdicts(rows: list[dict], methods: list[str]) -> list[dict]:
    """Per method: the fraction of the way to the target that the distance fell, the worst seed first, and the control's."""
    before = {row["seed"]: row["distance"] for row in rows if row["method"] == "none"}
    results = []
    for method in methods:
        shares = {data: [1 - row["distance"] / before[row["seed"]] for row in rows
                         if row["method"] == method and row["data"] == data] for data in DATA}
        least, mean, control = min(shares["openmoji"]), np.mean(shares["openmoji"]), max(shares["control"])
        results += [
            {"measure": f"{method}: fraction of the way to the style, mean of the seeds", "value": round(float(mean), 3),
             "unit": "of the distance", "goal": "> 0.1", "met": bool(mean > 0.1)},
            {"measure": f"{method}: the seed that went least far, less the control that went farthest",
             "value": round(float(least - control), 3), "unit": "of the distance", "goal": "> 0",
             "met": bool(least > control)},
        ]
    return results


if __name__ == "__main__":
    main()
