"""Run as a script with a folder of ComfyUI and a folder for files: one LoRA as several trainers write it, on a small SD3.

    python tests/host/flow_lora_effects.py COMFYUI FOLDER

Writes FOLDER/results.json: per file what the inspector, the stack, the converter and ComfyUI's own loader make of it. The
names and the forms of the factors are written by hand, from what each trainer documents. A process of its own, because
ComfyUI's modules would stay in the tests' process.
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

become_host(Path(sys.argv[1]))
load_pack()
import comfy.lora  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

torch.set_grad_enabled(False)
FOLDER = Path(sys.argv[2])
folder_paths.set_output_directory(str(FOLDER))
folder_paths.add_model_folder_path("loras", str(FOLDER))

from finetune.nodes import host  # noqa: E402
from finetune.nodes.host.stack import inspect_lora  # noqa: E402
from finetune.trainers.events import silent  # noqa: E402
from finetune.trainers.spec import FolderSpec  # noqa: E402
from finetune.trainers.stacking import LoraEntry, StackRow  # noqa: E402
from finetune.trainers.tools.file_tasks import TOOLS  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from support import full_flow, tiny_flow  # noqa: E402

RANK, ALPHA = 2, 1.0
DRAW = torch.Generator().manual_seed(0)
QKV, FC1 = "joint_blocks.0.x_block.attn.qkv", "joint_blocks.1.x_block.mlp.fc1"
LAST, FINAL = "joint_blocks.1.context_block.adaLN_modulation.1", "final_layer.adaLN_modulation.1"
MODULES = {QKV: [f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv"], FC1: ["transformer_blocks.1.ff.net.0.proj"],
           LAST: ["transformer_blocks.1.norm1_context.linear"], FINAL: ["norm_out.linear"]}
"""Native layer → diffusers' layers; in the last two shift and scale are the other way round there."""


def noise(*shape):
    return 0.1 * torch.randn(shape, generator=DRAW)


def other_half(up, native):
    return up.roll(len(up) // 2, 0) if native in (LAST, FINAL) else up


def files(shapes):
    """(name → tensors of a file, native layer → its change)"""
    made = {name: {} for name in ("kohya", "ai-toolkit", "OneTrainer", "OneTrainer, older")}
    changes = {}
    for native, modules in MODULES.items():
        rows, columns = shapes[f"{native}.weight"]
        downs = [noise(RANK, columns) for _ in modules]
        ups = [noise(rows // len(modules), RANK) for _ in modules]
        changes[native] = ALPHA / RANK * torch.cat([up @ down for up, down in zip(ups, downs)])
        kohya = f"lora_unet_{native.replace('.', '_')}"
        # With split_qkv, kohya's trainer writes the three side by side, each in its own rows and ranks.
        made["kohya"] |= {f"{kohya}.lora_down.weight": torch.cat(downs), f"{kohya}.lora_up.weight": torch.block_diag(*ups),
                          f"{kohya}.alpha": torch.tensor(ALPHA * len(modules))}
        for number, (module, down, up) in enumerate(zip(modules, downs, ups)):
            theirs = other_half(up, native)
            made["ai-toolkit"] |= {f"transformer.{module}.lora_A.weight": down,
                                   f"transformer.{module}.lora_B.weight": ALPHA / RANK * theirs}
            older = f"lora_transformer_{module.replace('.', '_')}"
            newer = f"transformer.{native}.{number}" if len(modules) > 1 else f"transformer.{native}"
            for key, own, factor in (("OneTrainer, older", older, theirs), ("OneTrainer", newer, up)):
                made[key] |= {f"{own}.lora_down.weight": down, f"{own}.lora_up.weight": factor,
                              f"{own}.alpha": torch.tensor(ALPHA)}
    return made, changes


def weights_with(patched, native):
    name = f"diffusion_model.{native}.weight"
    weight = patched.model.state_dict()[name].float().clone()
    return comfy.lora.calculate_weight(patched.patches[name], weight, name) if name in patched.patches else weight


def off(patched, base, changes, factors=None):
    """Largest difference of the patched weights from base + change."""
    return max(float((weights_with(patched, native) - base[f"{native}.weight"] - (factors or {}).get(native, 1.0) * change)
                     .abs().max()) for native, change in changes.items())


def converted(path, names):
    folder = FOLDER / f"{path.stem} as {names}"
    folder.mkdir()
    # diffusers' names are those of FLUX.1 too, and widths as small as these tell nothing: the base is said.
    spec = TOOLS["convert"].spec(name="made", lora=str(path), names=names, device="cpu", base=str(FOLDER / "base.sft"),
                                 folders=FolderSpec(runs=str(folder), caches=str(folder)))
    TOOLS["convert"].work(spec, folder, silent, lambda: False)
    return load_file(folder / "made.safetensors")


def loaded_by_the_host(model, tensors):
    """(what ComfyUI's own loader makes of a file, how many of its keys stay unloaded)"""
    key_map = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(dict(tensors), key_map, log_missing=False)
    taken = set().union(*(patch.loaded_keys for patch in patches.values()))
    return comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 0.0)[0], len(set(tensors) - taken)


def effects():
    with torch.device("meta"):
        shapes = full_flow.shapes_of("sd3", tiny_flow.make_transformer("sd3"))
    base = {name: noise(*shape) for name, shape in shapes.items()}
    save_file(base, FOLDER / "base.sft")
    model = comfy.sd.load_diffusion_model_state_dict(dict(base))
    made, changes = files(shapes)
    results = {}
    for name, tensors in made.items():
        path = FOLDER / f"{name}.safetensors"
        save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path)
        folder_paths.filename_list_cache.clear()
        report, found = inspect_lora(model, None, path.name)
        stacked = host.apply_stack(model, None, [LoraEntry(path.name)])[0]
        row = StackRow(lora=path.name, blocks="JOINT00=0.25, EXTRA=0")
        weighted = host.apply_stack(model, None, [LoraEntry(path.name, 1.0, 1.0, row)])[0]
        result = {"keys": len(tensors), "matched": report.matched, "layers": sorted(set(found.values())),
                  "stack": off(stacked, base, changes), "blocks": off(weighted, base, changes, {QKV: 0.25, FINAL: 0.0})}
        for names in ("kohya", "comfyui", "diffusers"):
            patched, unloaded = loaded_by_the_host(model, converted(path, names))
            result[names] = {"unloaded": unloaded, "off": off(patched, base, changes)}
        results[name] = result
    return results


if __name__ == "__main__":
    (FOLDER / "results.json").write_text(json.dumps(effects()), encoding="utf-8")
