"""How fast a stack of LoRAs is on the model, compared with a chain of ComfyUI's own loaders?

    python -m benchmarks.stack

Stable Diffusion 1.x at full size with random weights and LoRAs of rank 32 on every linear layer and 1×1 convolution of the
transformers and the text encoder, as kohya's trainer writes them by default. Both ways in one process, in turns: read the
files, make the patches, patch the weights on the device. Both read files afresh each time. Files are in the system's cache.
"""
import argparse
import contextlib
import ctypes
import gc
import re
import statistics
import tempfile
import time
from pathlib import Path

from .full_size import make_checkpoint
from .measuring import forget_peak_resident, peak_resident
from .pack import become_host, comfyui_folder, load_pack
from .report import finish

COUNTS, RANK, GOAL = (1, 5, 20), 32, 4.0
STRENGTHS = (0.05, 0.9)
"""Smallest and largest strength. LoRAs are random: twenty at full strength would drown the model."""


def make_loras(folder: Path, count: int, model, clip) -> list[str]:
    """Random LoRA files for a native model, fp16; returns their names."""
    import comfy.lora
    import torch
    from safetensors.torch import save_file

    names = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = dict(model.model.state_dict())
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    weights |= clip.cond_stage_model.state_dict()
    adapted = r"lora_unet_(down|mid|up)_.*(proj_in|proj_out|to_[qkv]|to_out_0|ff_net_0_proj|ff_net_2)$|lora_te_text_model_.*"
    layers = {key: weights[target].shape for key, target in names.items() if re.match(adapted, key)}
    draw, files = torch.Generator().manual_seed(0), []
    for number in range(count):
        tensors = {}
        for key, shape in layers.items():
            end = shape[2:] if len(shape) > 2 else ()
            tensors[f"{key}.lora_down.weight"] = torch.randn((RANK, *shape[1:]), generator=draw).half() * shape[1]**-0.5
            tensors[f"{key}.lora_up.weight"] = torch.randn((shape[0], RANK, *[1] * len(end)), generator=draw).half() * 0.02
            tensors[f"{key}.alpha"] = torch.tensor(RANK / 2).half()
        save_file(tensors, folder / f"random_{number}.safetensors")
        files.append(f"random_{number}.safetensors")
    return files


class Stacks:
    """The same stack in both ways, on the same loaded checkpoint."""

    def __init__(self, checkpoint: Path):
        import comfy.model_management
        import comfy.sd
        import torch

        torch.set_grad_enabled(False)
        self.management = comfy.model_management
        self.model, self.clip, _, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False)

    def by_chain(self, entries):
        from nodes import LoraLoader

        model, clip = self.model, self.clip
        for name, strength, text_strength in entries:
            model, clip = LoraLoader().load_lora(model, clip, name, strength, text_strength)
        return model, clip

    def by_stack(self, entries):
        from finetune.nodes import host
        from finetune.nodes.host import lora_files

        lora_files._read.clear()
        return host.apply_stack(self.model, self.clip, entries)[:2]

    def timed(self, way, entries) -> dict:
        """Seconds until patched and ready, memory on top of the model, and what the weights are then."""
        import torch

        self.management.unload_all_models()
        gc.collect()
        before = self._memory(forget=True)
        began, working = time.perf_counter(), time.process_time()
        model, clip = way(entries)
        applied = time.perf_counter() - began
        self.management.load_models_gpu([model, clip.patcher], force_patch_weights=True, force_full_load=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "processor_seconds": time.process_time() - working, "until_patches": applied,
                "bytes": self._memory() - before, "model": model, "clip": clip}

    def _memory(self, forget: bool = False) -> int:
        import torch

        if torch.cuda.is_available():
            if forget:
                torch.cuda.reset_peak_memory_stats()
            return torch.cuda.max_memory_allocated()
        if forget:
            give_freed_memory_back()
            forget_peak_resident()
        return peak_resident()

    def prediction(self, model, clip):
        """One denoising call, and the text's states."""
        import torch

        hidden = clip.encode_from_tokens_scheduled(clip.tokenize("a photograph of a fox"))[0][0]
        latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(1)).to(model.load_device)
        clean = model.model.apply_model(latents, torch.full((1,), 2.0).to(latents), c_crossattn=hidden.to(latents))
        return clean.float().cpu()


def give_freed_memory_back():
    """What one way has freed must not be there for the other to use unseen."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def snapshot(model, clip) -> dict:
    state = {**model.model.state_dict(), **clip.cond_stage_model.state_dict()}
    return {name: tensor.float().cpu().clone() for name, tensor in state.items()
            if re.search(r"attn|\.ff\.|proj_|mlp", name) and name.endswith("weight")}


def compare(stacks: Stacks, names: list[str], repeats: int) -> tuple[list[dict], dict]:
    count = len(names)
    low, high = STRENGTHS
    entries = [(name, low + (high - low) * number / max(1, count - 1), high - (high - low) * number / max(1, count - 1))
               for number, name in enumerate(names)]
    from finetune.trainers.stacking import LoraEntry

    ways = {"chain": (stacks.by_chain, entries), "stack": (stacks.by_stack, [LoraEntry(*entry) for entry in entries])}
    runs: dict[str, list[dict]] = {"chain": [], "stack": []}
    weights, predictions = {}, {}
    for turn in range(repeats + 1):  # the first turn warms up and is not counted
        for name, (way, stack) in ways.items():
            run = stacks.timed(way, stack)
            if turn == 0:
                if name == "chain":
                    weights = snapshot(run["model"], run["clip"])
                else:
                    now = snapshot(run["model"], run["clip"])
                    largest = max(float((now[key] - weights[key]).abs().max()) for key in weights)
                    size = max(float(tensor.abs().max()) for tensor in weights.values())
                    del now
                    weights = {}
                predictions[name] = stacks.prediction(run["model"], run["clip"])
            else:
                runs[name].append({key: run[key] for key in ("seconds", "processor_seconds", "until_patches", "bytes")})
            del run
        print(f"{count} LoRAs, turn {turn}: " + ", ".join(
            f"{name} {run[-1]['seconds']:.2f} s" for name, run in runs.items() if run), flush=True)
    seconds = {name: statistics.median(run["seconds"] for run in runs[name]) for name in runs}
    ratios = sorted(chain["seconds"] / stack["seconds"] for chain, stack in zip(runs["chain"], runs["stack"]))
    memory = {name: max(run["bytes"] for run in runs[name]) / 2**30 for name in runs}
    difference = float((predictions["stack"] - predictions["chain"]).abs().max())
    scale = float(predictions["chain"].abs().max())
    label = f"{count} LoRA{'s' if count > 1 else ''}"
    ratio = seconds["chain"] / seconds["stack"]
    goal = f">= {GOAL:g}" if count == max(COUNTS) else "> 1"
    results = [
        row(f"{label}: chain of loaders, until patched and ready", seconds["chain"], "s", "", True),
        row(f"{label}: Apply LoRA Stack, until patched and ready", seconds["stack"], "s", "", True),
        row(f"{label}: times as fast as the chain", ratio, "ratio", goal,
            ratio >= GOAL if count == max(COUNTS) else ratio > 1),
        row(f"{label}: peak memory on top of the model, chain", memory["chain"], "GiB", "", True),
        row(f"{label}: peak memory on top of the model, stack", memory["stack"], "GiB", "<= chain + 5 %",
            memory["stack"] <= 1.05 * memory["chain"]),
        row(f"{label}: largest difference of a weight (largest weight {size:.3g})", largest, "absolute", "< 1e-4",
            largest < 1e-4),
        row(f"{label}: largest difference of one denoising call (largest value {scale:.3g})", difference, "absolute",
            "< 0.001", difference < 1e-3),
    ]
    return results, {"runs": runs, "spread of the ratio": [ratios[0], ratios[-1]]}


def row(measure: str, value: float, unit: str, goal: str, met: bool) -> dict:
    return {"measure": measure, "value": value, "unit": unit, "goal": goal, "met": met}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="counted turns (default 3)")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="LoRAs in a stack (default 1 5 20)")
    options = parser.parse_args()
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder) / "random.safetensors")
        become_host(comfyui_folder())
        import folder_paths

        loras = Path(folder) / "loras"
        loras.mkdir()
        folder_paths.add_model_folder_path("loras", str(loras))
        folder_paths.set_output_directory(folder)
        load_pack()
        stacks = Stacks(checkpoint)
        names = make_loras(loras, max(options.counts), stacks.model, stacks.clip)
        results, details = [], {"bytes of a file": (loras / names[0]).stat().st_size}
        for count in options.counts:
            rows, facts = compare(stacks, names[:count], options.repeats)
            results += rows
            details[f"{count} LoRAs"] = facts
        import torch

        accelerated = torch.cuda.is_available()
        details["processor"] = torch.cuda.get_device_name() if accelerated else f"{torch.get_num_threads()} threads"
    finish("stack", results, details)


if __name__ == "__main__":
    main()
