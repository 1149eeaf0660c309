"""What the engine computes, row by row of its registries: losses of 20 steps and a digest of every tensor that is saved.

    python -m benchmarks.behavior record        writes results/behavior.json
    python -m benchmarks.behavior compare       computes all rows anew and names those that differ
    python -m benchmarks.behavior compare --only demo/ optimizer/     those rows alone

For changes that must not change numbers: record before, compare after, in the same environment, on one thread. Rows are
every family (tiny random models, and the demo base) × every method, and on one tiny model every optimizer, schedule, loss,
distribution of timesteps and what else decides a step; then the file tools on what was trained.
"""
import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from .pack import ROOT, load_pack

RESULTS = ROOT / "benchmarks" / "results" / "behavior.json"
STEPS = 20


def digest(path: Path) -> str:
    """Of all tensors of a safetensors or .pt file: names, dtypes, shapes and values, in the order of their names."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path) if path.suffix == ".safetensors" else flat(torch.load(path, weights_only=True))
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().cpu()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def flat(value, name: str = "") -> dict:
    """Tensors inside nested dictionaries and lists, under their paths."""
    import torch

    if isinstance(value, torch.Tensor):
        return {name: value if value.dim() else value[None]}
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {path: tensor for key, each in inside for path, tensor in flat(each, f"{name}/{key}").items()}


def run_name(row: str) -> str:
    return row.replace("/", "_").replace(" ", "_").replace(",", "")


class Bench:
    """Bases, images and a folder for the runs."""

    def __init__(self, folder: Path):
        from finetune.trainers.data.manifest import scan_folder
        from finetune.trainers.families.recognition import recognize
        from support import tiny

        self.folder = folder
        self.bases = {family: recognize(str(tiny.make_folder(family, folder / family)), family) for family in tiny.FAMILIES}
        self.bases["demo"] = recognize(str(ROOT / "demo_base"), "demo")
        images = tiny.make_images(folder / "squares", 5)
        tiny.half_mask().save(images / "square_1-masklabel.png")
        self.dataset = scan_folder(str(images), "squares")
        self.others = scan_folder(str(tiny.make_images(folder / "others", 3, (96, 64))), "others")

    def train(self, row: str, base: str, **parts) -> dict:
        """Losses and digests of a run. `training` may hold fields of its own beside the common ones."""
        from finetune.trainers import spec as specs
        from finetune.trainers.run_folder import open_run
        from finetune.trainers.training.run import train_run

        training = {"steps": STEPS, "batch_size": 2, "resolution": 64, "seed": 3, **parts.pop("training", {})}
        spec = specs.RunSpec(**{**dict(
            name=run_name(row), base=self.bases[base], dataset=self.dataset, method=specs.LoraSpec(rank=2, alpha=2),
            optimizer=specs.OptimizerSpec(learning_rate=1e-3), training=specs.TrainingSpec(**training),
            checkpoints=specs.CheckpointSpec(every=0), folders=specs.FolderSpec(
                runs=str(self.folder / "runs"), caches=str(self.folder / "caches")), device="cpu"), **parts})
        losses, run = [], open_run(spec)
        train_run(spec, run, lambda event: losses.append(event.loss) if event.event == "step" else None)
        return {"losses": losses, "files": self.files(run.folder)}

    def files(self, folder: Path) -> dict[str, str]:
        return {path.name: digest(path) for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".pt")}


def rows(bench: Bench) -> Iterator[tuple[str, Callable[[], dict]]]:
    """(name, what computes it) of every row."""
    from finetune.trainers import spec as specs
    from finetune.trainers.spec import settings
    from support.method_rows import METHODS

    def run(name: str, base: str, **parts):
        return name, lambda: bench.train(name, base, **parts)

    for base in bench.bases:
        for name, method in METHODS.items():
            yield run(f"{base}/{name}", base, method=method)

    def choices(part, field: str):
        return get_args(part.model_fields[field].annotation)

    for name in choices(settings.OptimizerSpec, "name"):
        if name not in ("adamw_8bit", "lion", "prodigy"):  # these need packages of their own
            yield run(f"optimizer/{name}", "sd1", optimizer=specs.OptimizerSpec(name=name, learning_rate=1e-3))
    for name in choices(settings.ScheduleSpec, "name"):
        yield run(f"schedule/{name}", "sd1", schedule=specs.ScheduleSpec(
            name=name, warmup_steps=0 if name == "one_cycle" else 3))
    for name in choices(settings.ObjectiveSpec, "loss"):
        yield run(f"loss/{name}", "sd2", objective=specs.ObjectiveSpec(loss=name))
    for name in choices(settings.ObjectiveSpec, "distribution"):
        yield run(f"distribution/{name}", "sd1", objective=specs.ObjectiveSpec(distribution=name))
    objectives = {
        "min-SNR": dict(min_snr_gamma=5), "debiased": dict(debiased=True), "zero terminal SNR": dict(zero_terminal_snr=True),
        "noise offset": dict(noise_offset=0.1), "multi-resolution": dict(multires_iterations=4),
        "perturbation": dict(input_perturbation=0.1), "image noise": dict(image_noise=0.05),
        "part of the levels": dict(minimum_timestep=0.2, maximum_timestep=0.7),
        "masks": dict(masked=True, unmasked_weight=0.3)}
    for name, fields in objectives.items():
        base = "sd2" if "terminal" in name else "sdxl"
        yield run(f"objective/{name}", base, objective=specs.ObjectiveSpec(**fields))
    others = {
        "EMA": dict(training=dict(ema_decay=0.9)), "accumulation": dict(training=dict(accumulation=2)),
        "caption dropout": dict(training=dict(caption_dropout=0.4)),
        "class images": dict(prior=specs.PriorSpec(dataset=bench.others, weight=0.5)),
        "fp8": dict(memory=specs.MemorySpec(frozen_precision="fp8")),
        "int8": dict(memory=specs.MemorySpec(frozen_precision="int8")),
        "bf16": dict(memory=specs.MemorySpec(precision="bf16")),
        "checkpointing": dict(memory=specs.MemorySpec(gradient_checkpointing=True)),
        "validation": dict(validation=specs.ValidationSpec(fraction=0.4, every=5)),
        "resolution 96": dict(training=dict(resolution=96)),
    }
    for name, parts in others.items():
        yield run(f"settings/{name}", "sdxl", **parts)
    yield from tools(bench)


def tools(bench: Bench) -> Iterator[tuple[str, Callable[[], dict]]]:
    """The file tools on what the rows before have trained."""
    from finetune.trainers import spec as specs
    from finetune.trainers.events import silent
    from finetune.trainers.run_folder import open_run
    from finetune.trainers.tools.file_tasks import TOOLS, perform

    runs = bench.folder / "runs"

    def trained(row: str) -> str:
        return str(next(path for path in (runs / run_name(row)).iterdir() if path.suffix == ".safetensors"))

    def tool(row: str, fields: Callable[[], dict]):
        def make() -> dict:
            spec = TOOLS[row.split(" ")[0]].spec(name=f"tool_{run_name(row)}", device="cpu", folders=specs.FolderSpec(
                runs=str(runs), caches=str(bench.folder / "caches")), **fields())
            run = open_run(spec)
            perform(spec, run, silent, lambda: False)
            return {"losses": [], "files": bench.files(run.folder)}
        return f"tool/{row}", make

    def loras(base: str, *names: str) -> list[dict]:
        return [{"path": trained(f"{base}/{name}"), "model": 0.8 - number, "text": 0.5} for number, name in enumerate(names)]

    for base in bench.bases:
        yield tool(f"extract {base}", lambda base=base: dict(
            tuned=trained(f"{base}/full with text encoder"), base=bench.bases[base].path, rank=4))
        for rule, threshold in (("exact", 0.9), ("energy", 0.8), ("fixed", 0.9)):
            yield tool(f"merge {base} {rule}", lambda base=base, rule=rule, threshold=threshold: dict(
                loras=loras(base, "with text encoder", "all layers, dropout"), rule=rule, rank=3, threshold=threshold))
        for names in ("kohya", "diffusers", "comfyui"):
            yield tool(f"convert {base} {names}", lambda base=base, names=names: dict(
                lora=trained(f"{base}/with text encoder"), base=bench.bases[base].path, names=names, file_precision="fp16"))
        for kind in ("LoHa", "LoKr", "DoRA"):
            yield tool(f"bake {base} {kind}", lambda base=base, kind=kind: dict(
                base=trained(f"{base}/full"), loras=loras(base, kind, "attention")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=("record", "compare"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of the names of rows")
    arguments = parser.parse_args()
    sys.path.append(str(ROOT / "tests"))
    load_pack()
    import torch

    torch.set_num_threads(1)
    known = json.loads(arguments.results.read_text(encoding="utf-8")) if arguments.do == "compare" else {}
    found, differing = {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, compute in rows(Bench(Path(folder))):
            if not name.startswith(tuple(arguments.only)):
                continue
            found[name] = json.loads(json.dumps(compute()))
            same = arguments.do == "record" or known.get(name) == found[name]
            differing += [] if same else [name]
            print(f"{name}: {'' if same else 'DIFFERS '}{list(found[name]['files'].values())}", flush=True)
    missing = sorted(name for name in set(known) - set(found) if name.startswith(tuple(arguments.only)))
    if arguments.do == "record":
        arguments.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"name": "behavior", "results": [
        {"measure": "rows that differ", "value": len(differing) + len(missing), "unit": f"of {len(found)} rows", "goal": 0,
         "met": not differing and not missing, "rows": differing + missing}]}))


if __name__ == "__main__":
    main()
