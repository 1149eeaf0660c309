"""How long does a LoRA step take, and how much memory, beside peers and the floor? On a full-size SD 1.5, or on SD3 or
FLUX.1 of true width and reduced depth.

    python -m benchmarks.train_step [--family sd1|sd3|flux] [--depth 2] [--latent 32] [--repeats 5] [--quick]

Ours is a real run of the engine. It meets diffusers' own LoRA example, the floor (one forward pass of the frozen denoiser
and one backward pass to its input) and ComfyUI's TrainLoraNode, each in a duel: two processes that make single steps in
alternating order, so that both meet the same disturbances. Batches of one image, rank 16; ours, diffusers and the floor
adapt or pass the attention layers in float32 on a CPU and bfloat16 on a GPU. TrainLoraNode adapts every weight, which is
its design, and is met at equal precision and checkpointing; on SD3 at its defaults only, and at full depth, because ComfyUI
takes the number of blocks from the width. Everything has random weights.
"""
import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from . import flow_size, full_size
from .measuring import GIB, Contender, Patience, Summary, library_versions
from .pack import comfyui_folder
from .report import RESULTS, finish

RANK, IMAGES, MORE_STEPS = 16, 4, 1_000_000
PATIENCE = 180.0
"""Seconds of a whole run that disturbances by other programs may cost."""
OURS, OURS_BF16 = "ours", "ours bf16 checkpointed"
EXAMPLE, FLOOR = "diffusers and peft", "floor"
NODE, NODE_FP32, NODE_FP32_CHECKPOINTED = (
    "TrainLoraNode", "TrainLoraNode fp32 not checkpointed", "TrainLoraNode fp32"
)
HOST_DEPTH, HOST_LATENT = {"sd3": 24}, 8
"""Blocks that ComfyUI expects at the true width, and a side of latents at which their steps are short."""
TITLES = {"sd1": "full-size SD 1.5", "sd3": "SD3", "flux": "FLUX.1"}
LABELS = {
    OURS: "ours", EXAMPLE: "diffusers + peft", FLOOR: "floor: frozen denoiser,\nforward and input gradient",
    NODE_FP32: "TrainLoraNode\nfp32", OURS_BF16: "ours\nbf16, checkpointing",
    NODE: "TrainLoraNode\nbf16, checkpointing (default)", NODE_FP32_CHECKPOINTED: "TrainLoraNode\nfp32, checkpointing",
}


@dataclass
class Numbers:
    """Everything that was measured: seconds of every step, bytes, and the ratio ours / rival of every round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    disturbed: int = 0

    def add_step(self, name: str, seconds: float):
        self.seconds.setdefault(name, []).append(seconds)

    def add_process(self, name: str, contender: Contender):
        before = self.memory.get(name, {})
        self.memory[name] = {kind: max(size, before.get(kind, 0)) for kind, size in contender.memory.items()}
        self.disturbed += contender.disturbed

    def ratio(self, rival: str) -> Summary:
        return Summary.of(self.ratios[rival])

    def memory_ratio(self, name: str, rival: str, beyond_torch: bool) -> float:
        ours, other = (
            self.memory[each]["peak"] - beyond_torch * self.memory[each]["baseline"] for each in (name, rival)
        )
        return ours / other


class Arena:
    """Starts contenders on the same checkpoint and images."""

    def __init__(self, folder: Path, family: str, depth: int, latent: int, numbers: Numbers):
        self.folder, self.latent, self.numbers, self.started = folder, latent, numbers, 0
        self.family, self.depth = family, depth
        self.patience = Patience(PATIENCE)
        print("Writing a random checkpoint ...", flush=True)
        self.checkpoint, self.configs = folder / "random.safetensors", ""
        if family == "sd1":
            full_size.make_checkpoint(self.checkpoint)
        else:
            flow_size.make_checkpoint(family, depth, self.checkpoint)
            self.configs = str(flow_size.configs_of(self.checkpoint))
        self.images = full_size.make_images(folder / "images", IMAGES, 8 * latent)

    def start(self, name: str) -> Contender:
        self.started += 1
        own = self.folder / str(self.started)
        own.mkdir()
        job = {
            "family": self.family, "depth": self.depth, "configs": self.configs,
            "checkpoint": str(self.checkpoint), "images": str(self.images), "folder": str(own),
            "latent": self.latent, "rank": RANK, "steps": MORE_STEPS,
        }
        return Contender("benchmarks.contenders", name, json.dumps(job), log=own / "log.txt", patience=self.patience)

    def duel(self, name: str, rival: str, rounds: int):
        """Steps in alternating order, after one step each that loads and one that warms up."""
        print(f"{name} against {rival}", flush=True)
        with self.start(name) as first, self.start(rival) as second:
            contenders = {name: first, rival: second}
            for contender in contenders.values():
                contender.first_step()
            for contender in contenders.values():
                contender.step()
            for number in range(rounds):
                order = [name, rival] if number % 2 else [rival, name]
                seconds = {each: contenders[each].step() for each in order}
                for each, value in seconds.items():
                    self.numbers.add_step(each, value)
                self.numbers.ratios.setdefault(rival, []).append(seconds[name] / seconds[rival])
                print(f"  {seconds[name]:.2f} s and {seconds[rival]:.2f} s", flush=True)
            for each, contender in contenders.items():
                self.numbers.add_process(each, contender)

    def alone(self, name: str, steps: int):
        print(f"{name} alone", flush=True)
        with self.start(name) as contender:
            contender.first_step()
            for _ in range(steps):
                self.numbers.add_step(name, contender.step())
            self.numbers.add_process(name, contender)


def measure(family: str, depth: int, latent: int, repeats: int) -> Numbers:
    numbers = Numbers()
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder), family, depth, latent, numbers)
        arena.duel(OURS, EXAMPLE, 2 * repeats)
        arena.duel(OURS, FLOOR, 2 * repeats)
        if comfyui_folder():
            meet_host(arena, repeats)
        else:
            print("ComfyUI is not here (scripts/demo.py gets it), so its TrainLoraNode is left out.")
    return numbers


def meet_host(arena: Arena, repeats: int):
    meetings = [(OURS, NODE_FP32), (OURS_BF16, NODE), (NODE_FP32_CHECKPOINTED,)]
    depth = HOST_DEPTH.get(arena.family, arena.depth)
    if depth != arena.depth:
        arena.checkpoint.unlink()
        own = arena.folder / "full depth"
        own.mkdir()
        arena, meetings = Arena(own, arena.family, depth, HOST_LATENT, arena.numbers), [(OURS_BF16, NODE)]
    for names in meetings:
        try:
            arena.duel(*names, repeats) if len(names) == 2 else arena.alone(*names, 2)
        except RuntimeError as problem:  # that of ComfyUI 0.3.75 trains no model with norms of q and k
            print(f"It fails, and is left out: {str(problem).splitlines()[-1].strip()}")


def judge(numbers: Numbers, goal: float) -> list[dict]:
    """`goal` is how much longer than the floor a step may take."""
    example, floor = numbers.ratio(EXAMPLE), numbers.ratio(FLOOR)
    results = [
        result(f"time of a step, ours / {EXAMPLE} (± {2 * example.error:.3f})", example.median, "ratio",
               "<= 1.0 within twice its standard error", example.median - 2 * example.error <= 1.0),
        result("time of a step, ours / floor", floor.median, "ratio", f"<= {goal:g}", floor.median <= goal),
    ]
    for name, rival, settings in ((OURS, NODE_FP32, "both fp32"), (OURS_BF16, NODE, "both bf16 with checkpointing")):
        if rival in numbers.ratios:
            faster = 1 / numbers.ratio(rival).median
            results.append(result(f"time of a step, TrainLoraNode / ours, {settings}", faster, "ratio", ">= 3", faster >= 3))
            for beyond, what in ((True, "beyond Python and torch"), (False, "of the whole process")):
                part = numbers.memory_ratio(name, rival, beyond)
                results.append(result(f"peak memory {what}, ours / TrainLoraNode, {settings}", part, "ratio", "<= 0.5",
                                      part <= 0.5))
    return results


def result(measure: str, value: float, unit: str, goal: str, met: bool) -> dict:
    return {"measure": measure, "value": round(value, 4), "unit": unit, "goal": goal, "met": bool(met)}


def details(numbers: Numbers, family: str, depth: int, latent: int, repeats: int) -> dict:
    import torch

    return {
        "family": family, "depth": depth if family != "sd1" else None, "latent": latent, "repeats": repeats,
        "depth_and_latent_of_bf16": (HOST_DEPTH[family], HOST_LATENT) if family in HOST_DEPTH else None,
        "rank": RANK, "batch_size": 1,
        "device": "cuda" if torch.cuda.is_available() else "cpu", "threads": torch.get_num_threads(),
        "versions": library_versions("torch", "diffusers", "peft", "accelerate", "transformers"),
        "steps_disturbed_by_other_programs": numbers.disturbed,
        "seconds_per_step": {name: Summary.of(values).as_dict() for name, values in numbers.seconds.items()},
        "ours_by_rival": {rival: Summary.of(values).as_dict() for rival, values in numbers.ratios.items()},
        "bytes": numbers.memory,
        "all_seconds": {name: [round(value, 4) for value in values] for name, values in numbers.seconds.items()},
        "all_ratios": {rival: [round(value, 4) for value in values] for rival, values in numbers.ratios.items()},
    }


def draw(numbers: Numbers, family: str, title: str, latent: int, path: Path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    of_another_size = (OURS_BF16, NODE) if family in HOST_DEPTH else ()
    names = [name for name in reversed(LABELS) if name in numbers.seconds and name not in of_another_size]
    colors = ["#d1495b" if name.startswith("ours") else "#8d99ae" for name in names]
    labels = [LABELS[name] for name in names]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    times = [Summary.of(numbers.seconds[name]) for name in names]
    spread = [[each.median - each.lowest for each in times], [each.highest - each.median for each in times]]
    bars = left.barh(labels, [each.median for each in times], color=colors, xerr=spread, ecolor="#333333", capsize=3)
    left.bar_label(bars, [f"  {each.median:.2f} s" for each in times], padding=6)
    left.set(title="seconds per step, median and extremes", xlim=(0, 1.25 * max(each.highest for each in times)))
    peaks = [numbers.memory[name]["peak"] / GIB for name in names]
    bars = right.barh(labels, peaks, color=colors)
    right.bar_label(bars, [f" {peak:.1f} GiB" for peak in peaks])
    right.set(title="peak memory of the process, loading included", xlim=(0, 1.2 * max(peaks)))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"LoRA step on {title}, {8 * latent} × {8 * latent} pixels, batch 1, rank {RANK}")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=tuple(TITLES), default="sd1")
    parser.add_argument("--depth", type=int, default=2,
                        help="blocks of SD3; double blocks of FLUX.1, with twice as many single ones")
    parser.add_argument("--latent", type=int, default=32, help="side of the latents; 32 is an image of 256 pixels")
    parser.add_argument("--repeats", type=int, default=5, help="rounds against TrainLoraNode; twice as many otherwise")
    parser.add_argument("--quick", action="store_true", help="one round at latent 16, only to see that it works")
    arguments = parser.parse_args()
    latent, repeats = (16, 1) if arguments.quick else (arguments.latent, arguments.repeats)
    family, depth = arguments.family, arguments.depth
    numbers = measure(family, depth, latent, repeats)
    for name, values in numbers.seconds.items():
        memory = numbers.memory[name]
        print(f"{name:36} {Summary.of(values)} s, {memory['peak'] / GIB:.2f} GiB at most, "
              f"{memory['training'] / GIB:.2f} GiB while training")
    results = judge(numbers, 1.25 if family == "sd1" else 1.05)
    name = "train_step" if family == "sd1" else f"train_step_{family}"
    if arguments.quick:  # too small to be kept
        print(json.dumps({"name": name, "results": results}))
        return
    title = TITLES[family] if family == "sd1" else f"{TITLES[family]} of depth {depth}"
    finish(name, results, details(numbers, family, depth, latent, repeats))
    draw(numbers, family, title, latent, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
