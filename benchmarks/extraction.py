"""How fast, how small and how near the optimum is extraction? A full-size pair: tuned = base + low rank + noise.

    python -m benchmarks.extraction [--family sd1] [--rank 64]

The pair is made with random weights. Ours runs in a process of its own, whole. The rivals are timed on one layer of every
shape and multiplied by how many there are: `torch.linalg.svd` of the whole layer, and what ComfyUI's LoraSave calls. The
residual is compared with the optimum, from all singular values, on one layer of every shape.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .pack import ROOT, become_host, comfyui_folder
from .report import finish

PLANTED, SIZE, NOISE = 32, 2e-3, 2e-4
"""Rank and sizes of the change: low rank above a full-rank floor, as training leaves it."""


def make_pair(folder: Path, family: str):
    """base.safetensors and tuned.safetensors in float16, from the names and shapes of the family's full-size model."""
    import torch
    from safetensors.torch import save_file

    from trainers.artifacts.layer_names import layers_of_checkpoint as layers

    from .full_size import shapes_of

    generator = torch.Generator().manual_seed(0)
    base = {name: (0.02 * torch.randn(shape, generator=generator)).half() for name, shape in shapes_of(family).items()}
    save_file(base, folder / "base.safetensors")
    for layer in layers({name: tuple(tensor.shape) for name, tensor in base.items()}):
        part = base[layer.tensor].chunk(layer.parts)[layer.part]
        wide = part.flatten(1)
        left, right = (torch.randn(shape, generator=generator) for shape in ((len(wide), PLANTED), (PLANTED, wide.shape[1])))
        change = SIZE * left @ right + NOISE * torch.randn(wide.shape, generator=generator)
        part.copy_((part.float() + change.reshape(part.shape)).half())
    save_file(base, folder / "tuned.safetensors")


def measure_ours(folder: str, rank: int):
    """The child's side: extract, print time and peak memory."""
    import torch  # noqa: F401, part of the interpreter's own memory here

    from .measuring import forget_peak_resident, peak_resident

    forget_peak_resident()
    idle = peak_resident()
    from trainers.spec import FolderSpec
    from trainers.spec.file_tasks import ExtractionSpec
    from trainers.tools.extraction import extract

    began = time.perf_counter()
    spec = ExtractionSpec(name="lora", tuned=f"{folder}/tuned.safetensors", base=f"{folder}/base.safetensors", rank=rank,
                          folders=FolderSpec(runs=folder, caches=folder), device="cpu")
    report = extract(spec, Path(folder) / "lora.safetensors")
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak_resident() - idle, "bytes": report.bytes,
                      "layers": report.layers, "kept": report.kept}))


def rivals(folder: Path, rank: int) -> tuple[dict[str, float], list[float]]:
    """(seconds for all layers by rival, residual of ours over the optimum minus 1, per shape)."""
    import torch

    from trainers.artifacts.layer_names import layers_of_checkpoint as layers
    from trainers.artifacts.weights import Weights
    from trainers.tools.decomposition import decompose

    tuned, base = (Weights.of_file(folder / f"{name}.safetensors") for name in ("tuned", "base"))
    seconds, excess, chosen, counts = Counter(), [], {}, Counter()
    for layer in layers(tuned.shapes()):
        shape = (tuned.shape(layer.tensor), layer.parts)
        counts[shape] += 1
        chosen.setdefault(shape, layer)
    become_host(comfyui_folder())
    from comfy_extras.nodes_lora_extract import extract_lora

    for shape, layer in chosen.items():
        change = (tuned.weight(layer.tensor) - base.weight(layer.tensor)).chunk(layer.parts)[layer.part]
        matrix = change.flatten(1)
        began = time.perf_counter()
        values = torch.linalg.svd(matrix, full_matrices=False).S
        seconds["torch.linalg.svd"] += counts[shape] * (time.perf_counter() - began)
        began = time.perf_counter()
        extract_lora(change, rank)
        seconds["ComfyUI's LoraSave"] += counts[shape] * (time.perf_counter() - began)
        factors = decompose(matrix, rank)
        residual = (matrix - factors.left * factors.values @ factors.right).double().norm()
        optimum = values[len(factors.values):].double().norm()
        if optimum:
            excess.append(float(residual / optimum) - 1)
        print(f"{shape[0]} × {counts[shape]}: residual {100 * excess[-1]:.2f} % above the optimum", flush=True)
    return dict(seconds), excess


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="sd1", choices=["sd1", "sd2", "sdxl"])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--pair", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return measure_ours(options.child, options.rank)
    if options.pair:
        return make_pair(Path(options.pair), options.family)
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")

    def child(*arguments: str) -> str:
        command = [sys.executable, "-m", f"{__package__}.extraction", "--rank", str(options.rank), *arguments]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        print("making a pair ...", flush=True)
        child("--pair", folder, "--family", options.family)
        runs = [json.loads(child("--child", folder).splitlines()[-1]) for _ in range(options.repeats)]
        print(json.dumps(runs[-1]), flush=True)
        full, excess = rivals(Path(folder), options.rank) if options.family == "sd1" else ({}, [])
    seconds, peak = statistics.median(run["seconds"] for run in runs), max(run["peak"] for run in runs) / 1e9
    limit = 3.0 if options.family == "sdxl" else 1.5
    what = f"ours: {runs[0]['layers']} layers of {options.family}, rank {options.rank}"
    results = [{"measure": what, "value": round(seconds, 1), "unit": "s", "goal": "", "met": True},
               {"measure": "ours: peak memory beyond the interpreter with torch", "value": round(peak, 2), "unit": "GB",
                "goal": f"< {limit}", "met": peak < limit}]
    for name, time_of in full.items():
        ratio = time_of / seconds
        results.append({"measure": f"times as fast as {name} ({time_of:.0f} s)", "value": round(ratio, 1), "unit": "×",
                        "goal": ">= 15", "met": ratio >= 15})
    if excess:
        results.append({"measure": "residual above the optimum, worst layer", "value": round(100 * max(excess), 3),
                        "unit": "%", "goal": "< 0.5", "met": max(excess) < 0.005})
    name = "extraction" if options.family == "sd1" else f"extraction_{options.family}"
    finish(name, results, {"runs": runs, "rivals_seconds": full, "excess": excess})


if __name__ == "__main__":
    main()
