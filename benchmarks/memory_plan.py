"""Whether training steps need the memory that is planned for them, and what Flux is planned to need.

    python -m benchmarks.memory_plan [--depth 8]

A model of SD3's width with random weights is loaded from its file and trained for two steps on the CPU, in processes of its
own, with more and more of its blocks swapped to the disk. The peak of resident memory in these steps, less what was there
before the model, is laid beside the plan, in a chart and in numbers. The table of FLUX.1, at its full size, is made by the
same plan.
"""
import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .flow_size import configs_of, make_checkpoint, plain_denoiser
from .measuring import GIB, forget_peak_resident, peak_resident
from .pack import ROOT, load_pack
from .report import RESULTS, finish

PIXELS, TEXT_TOKENS = 128, 77
TOLERANCE = 0.1
"""Of the planned peak: kernels of the CPU take memory for themselves."""
CARDS = (24, 16, 12, 8)
OTHERS = 1.0
"""GB of a card that the desktop and other programs hold."""
FLUX_TEXT, FLUX_DEPTH = 512, 19


def run_step(family, denoiser, latents: int, tokens: int, width: int, pooled: int, device: str, dtype):
    """The gradients of one image of `latents` × `latents`."""
    import torch
    from finetune.trainers.families.conditioning import Conditioning

    with torch.device(device):
        said = Conditioning({"hidden": torch.randn(1, tokens, width, dtype=dtype),
                             "pooled": torch.randn(1, pooled, dtype=dtype)})
        noise, timesteps = torch.randn(1, 16, latents, latents), torch.full((1,), 500.0)
    family.predict(denoiser, noise, timesteps, said).float().square().mean().backward()


def adapted(family, denoiser) -> list:
    """A LoRA of rank 16 on attention beside the denoiser, with gradient checkpointing; returns what trains."""
    import torch
    from finetune.trainers import spec as specs
    from finetune.trainers.methods import adapters

    layers = (name for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear))
    names = [name for name in layers if re.search(family.lora_targets["attention"], name)]
    adapters.inject(denoiser, specs.LoraSpec(rank=16, alpha=16), {name: adapters.Size(16, 16) for name in names})
    denoiser.enable_gradient_checkpointing()
    denoiser.train()
    return [each for each in denoiser.parameters() if each.requires_grad]


# ---- measured ------------------------------------------------------------------------------------------------------

def measure(path: Path, swapped: int, folder: Path):
    """In a process of its own: print the peak in bytes, and the losses' gradients as a checksum."""
    import torch

    load_pack()
    from finetune.trainers import families
    from finetune.trainers.caches.freed_memory import give_back_freed_memory
    from finetune.trainers.families.recognition import recognize
    from finetune.trainers.memory.placement import Placement
    from finetune.trainers.methods import adapters  # noqa: F401  (peft's imports are no part of the model)

    base = recognize(str(path), path.name, configs=str(configs_of(path)))
    family, device = families.get(base.family), torch.device("cpu")
    placement = Placement(device, torch.float32, torch.float32, swapped_blocks=swapped, folder=folder)
    family.empty_denoiser(base)  # libraries are imported now
    torch.nn.Linear(64, 64)(torch.randn(8, 64)).sum().backward()
    forget_peak_resident()
    before = peak_resident()
    denoiser = family.load_denoiser(base, torch.float32, placement.keeper)
    give_back_freed_memory()
    torch.manual_seed(0)
    trained = adapted(family, denoiser)
    give_back_freed_memory()
    preparing = peak_resident() - before
    forget_peak_resident()
    optimizer, sums = torch.optim.AdamW(trained, 1e-4), []
    for _ in range(2):
        torch.manual_seed(0)
        run_step(family, denoiser, PIXELS // 8, TEXT_TOKENS, 4096, 2048, "cpu", torch.float32)
        sums.append(float(sum(each.grad.double().abs().sum() for each in trained)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(json.dumps({"peak": peak_resident() - before, "preparing": preparing, "sums": sums}), flush=True)


def measured(path: Path, swapped: int, folder: Path) -> dict:
    command = [sys.executable, "-m", f"{__package__}.memory_plan", "--measure", str(path), "--swapped", str(swapped),
               "--folder", str(folder)]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


# ---- planned -------------------------------------------------------------------------------------------------------

def plan_of(family, denoiser, step, storage: str, dtype, offload: bool = False):
    """Of a step of a model on the meta device, with a LoRA of rank 16, gradient checkpointing and AdamW. `step(denoiser)`
    makes the gradients."""
    import torch
    from finetune.trainers.memory.activation_offload import Offloaded
    from finetune.trainers.memory.dry_run import peak_of
    from finetune.trainers.memory.plan import pack_without_weights, plan_step

    pack_without_weights(denoiser, storage, dtype)
    blocks = family.swappable_blocks(denoiser)
    adapted(family, denoiser)

    def whole_step():
        with Offloaded() if offload else contextlib.nullcontext():
            step(denoiser)
    return plan_step(denoiser, blocks, 8, lambda: peak_of(whole_step, None if dtype == torch.float32 else dtype))


def plan(name: str, depth: int, latents: int, tokens: int, storage: str, dtype, offload: bool = False):
    import torch
    from finetune.trainers import families
    from finetune.trainers.families.native_layout import to_native_layout

    family, pooled = families.get(name), {"sd3": 2048, "flux": 768}[name]
    with torch.device("meta"):
        denoiser = plain_denoiser(name, depth).to(dtype).requires_grad_(False)
        to_native_layout(denoiser, family.layer_names.key_map)
    denoiser.to(dtype).requires_grad_(False)

    def step(denoiser):
        run_step(family, denoiser, latents, tokens, 4096, pooled, "meta", dtype)
    return plan_of(family, denoiser, step, storage, dtype, offload)


def flux_table() -> list[dict]:
    """For each resolution and card the first settings that fit: 16 bits, 8 bits, swapped blocks, activations elsewhere."""
    import torch

    rows: list[dict] = []
    for pixels in (512, 1024):
        settings = [(storage, offload, plan("flux", FLUX_DEPTH, pixels // 8, FLUX_TEXT, storage, torch.bfloat16, offload))
                    for storage, offload in (("same", False), ("int8", False), ("int8", True))]
        for card in CARDS:
            free = card * GIB - OTHERS * 1e9
            fitting = [(*setting, setting[-1].fewest_blocks(free)) for setting in settings]
            without_swap = [setting for setting in fitting if setting[-1] == 0]
            found = next(iter(without_swap or [setting for setting in fitting[1:] if setting[-1] is not None]), None)
            row = {"pixels": pixels, "card_gb": card, "bf16_without_swap_gb": round(settings[0][2].on_gpu() / 1e9, 1)}
            if found:
                storage, offload, each, swapped = found
                row |= {"frozen_precision": storage, "offload_activations": offload, "swapped_blocks": swapped,
                        "peak_gb": round(each.on_gpu(swapped) / 1e9, 1)}
            rows.append(row)
    return rows


def draw(path: Path, counts: list[int], planned: list[float], found: list[float]):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(counts, planned, "--", label="planned")
    axes.plot(counts, found, "o-", label="measured")
    axes.set(xlabel="swapped blocks", ylabel="peak, GB", ylim=(0, None), title="SD3's width, float32, LoRA, CPU")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--swapped", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure, arguments.swapped, arguments.folder)
    load_pack()
    import torch

    table = flux_table()
    for row in table:
        print(row, flush=True)
    step = plan("sd3", arguments.depth, PIXELS // 8, TEXT_TOKENS, "same", torch.float32)
    counts = sorted({0, *range(2, arguments.depth + 1, max(1, arguments.depth // 4)), arguments.depth})
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint("sd3", arguments.depth, Path(folder) / "model.safetensors")
        runs = [measured(path, count, Path(folder) / "swapped") for count in counts]
    planned, found = [step.peak(count) / 1e9 for count in counts], [run["peak"] / 1e9 for run in runs]
    for count, one, other in zip(counts, planned, found, strict=True):
        print(f"{count} swapped: planned {one:.2f} GB, measured {other:.2f} GB", flush=True)
    RESULTS.mkdir(exist_ok=True)
    draw(RESULTS / "memory_plan.png", counts, planned, found)
    worst = max(abs(other / one - 1) for one, other in zip(planned, found, strict=True))
    same = all(run["sums"] == runs[0]["sums"] for run in runs)
    finish("memory_plan", [
        {"measure": "largest difference of measured and planned peaks", "value": round(worst, 3), "unit": "fraction",
         "goal": f"<= {TOLERANCE}", "met": worst <= TOLERANCE},
        {"measure": "runs whose gradients are those without swapped blocks", "value": sum(
            run["sums"] == runs[0]["sums"] for run in runs), "unit": "runs", "goal": f"{len(runs)}", "met": same},
        {"measure": "Flux LoRA of rank 16, cards and resolutions that fit", "value": sum(
            "peak_gb" in row for row in table), "unit": "of 8", "goal": "8", "met": all("peak_gb" in row for row in table)},
    ], {"swapped": counts, "planned_gb": planned, "measured_gb": found,
        "loading_and_attaching_gb": [run["preparing"] / 1e9 for run in runs], "flux": table})


if __name__ == "__main__":
    main()
