"""Run as a script with a folder of ComfyUI and a folder for files: the table of layer names against ComfyUI's own key maps.

    python tests/host/layer_name_effects.py COMFYUI FOLDER

Writes FOLDER/results.json: names that lead elsewhere than ComfyUI's, per family, which must be none. Models of the released
sizes are built on the meta device: names and shapes without memory. A process of its own, because ComfyUI's modules would
stay in the tests' process.
"""
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

become_host(Path(sys.argv[1]))
load_pack()
import comfy.lora  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.flux as flux  # noqa: E402
import comfy.text_encoders.pixart_t5 as pixart_t5  # noqa: E402
import comfy.text_encoders.sd3_clip as sd3_clip  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

torch.set_grad_enabled(False)
FOLDER = Path(sys.argv[2])
folder_paths.set_output_directory(str(FOLDER))

from finetune.nodes import host  # noqa: E402
from finetune.nodes.host.detection import Refused, detected_denoiser  # noqa: E402
from finetune.nodes.host.host_families import TRANSFORMERS  # noqa: E402
from finetune.nodes.host.native import host_model  # noqa: E402
from finetune.nodes.host.proof import _denoiser_alone, _differences, _text_model  # noqa: E402
from finetune.nodes.host.stack import Targets, inspect_lora, weight_of  # noqa: E402
from finetune.trainers.artifacts.layer_names import family_names  # noqa: E402
from finetune.trainers.artifacts.lora_file import read_lora  # noqa: E402
from finetune.trainers.families.component_configs import CONFIGS  # noqa: E402
from finetune.trainers.stacking import LoraEntry  # noqa: E402
from support import full_flow  # noqa: E402

TEXT = {"sd3": sd3_clip.sd3_clip, "flux": flux.flux_clip, "chroma": pixart_t5.pixart_te}
"""Of families whose text encoders may learn."""


def native_weight(layer) -> str:
    return layer.native.removeprefix("text_encoders.") + ".weight"


def names(family: str) -> dict:
    configs = [json.loads((CONFIGS / family / part / "config.json").read_text()) for part in ("unet", "text_encoder")]
    _, denoiser = host_model(configs[0], family, {}, device="meta")
    text = _text_model(family, configs[1] | {"num_hidden_layers": 12})
    model, clip = SimpleNamespace(model=denoiser), SimpleNamespace(cond_stage_model=text)
    key_map = comfy.lora.model_lora_keys_clip(text, comfy.lora.model_lora_keys_unet(denoiser, {}))
    shapes = dict(denoiser.state_dict()) | dict(text.state_dict())
    table, targets = family_names(family), Targets(model, clip)
    wrong, unknown, stacked, agreed = [], [], [], 0
    for layer in table.layers:
        unknown += [name for name in (layer.key, layer.native) if name not in key_map]
        for name in layer.spellings().values():
            wrong += [name] if key_map.get(name, native_weight(layer)) != native_weight(layer) else []
            stacked += [name] if targets.find(name) != native_weight(layer) else []
            agreed += name in key_map
    strangers = []
    for name, target in key_map.items():
        weight = isinstance(target, str) and target in shapes and shapes[target].ndim in (2, 4)
        # CLIP-L's and CLIP-H's projections are ComfyUI's own filling: no encoder of theirs has one that is read.
        filling = target in [f"clip_{letter}.transformer.text_projection.weight" for letter in "lh"]
        if weight and target.endswith(".weight") and "embedding" not in target and "lora_prior" not in name and not filling:
            found = table.find(name)
            strangers += [name] if found is None or native_weight(found) != target else []
    return {"wrong": wrong, "unknown": unknown, "stack": stacked, "strangers": strangers, "agreed": agreed,
            "layers": len(table.layers)}


def transformer_names(release: str) -> dict:
    """The same for a flow model in its full size, whose layers diffusers cuts otherwise; and how many keys of a LoRA for
    every layer, under every maker's names, the host leaves unloaded. Empty where the host does not know the model, or takes
    it for an older relative."""
    family, shapes = full_flow.RELEASES[release][0], full_flow.native_shapes(release)
    tensors = {f"model.diffusion_model.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
    if not any(hasattr(comfy.supported_models, name) for name, own in TRANSFORMERS.items() if own == family):
        return {}
    try:
        denoiser = detected_denoiser(tensors)
    except Refused:
        return {}
    weights, clip = dict(denoiser.state_dict()), None
    if family in TEXT:
        text = TEXT[family]()(device="meta", dtype=torch.float32)
        weights, clip = weights | dict(text.state_dict()), SimpleNamespace(cond_stage_model=text)
    targets = Targets(SimpleNamespace(model=denoiser), clip)
    layers = targets.names.layers
    views = [view for layer in layers for view in dict.fromkeys((layer, *layer.views.values()))]
    meant = {view: plain_target(targets._target(view)) for view in views}
    wrong, stacked, agreed = [], [], {}
    for view in views:
        for program, name in view.spellings().items():
            known = targets.exact.get(name)
            wrong += [name] if known is not None and plain_target(known) != meant[view] else []
            stacked += [name] if plain_target(targets.find(name)) != meant[view] else []
            agreed[program] = agreed.get(program, 0) + (known is not None)
    strangers = []
    for name, target in targets.exact.items():
        weight = weight_of(target)
        layer = weight in weights and weights[weight].ndim in (2, 4) and weight.endswith(".weight")
        words = "embedding.weight", "shared.weight", "relative_attention_bias", "adapter.embed.weight"
        if layer and "lora_prior" not in name and not is_of_a_relative(name, family) and not any(
                each in weight for each in words):
            found = targets.names.find(name)
            strangers += [name] if found is None or plain_target(targets._target(found)) != plain_target(target) else []
    makers = {"kohya": [layer.key for layer in layers], "comfyui": [layer.native for layer in layers], "diffusers": [
        each.diffusers for layer in layers if not layer.is_text for each in
        ([layer.views[split.name] for split in layer.splits] or [layer])]}
    missing = {maker: [name for name in names if name not in targets.exact] for maker, names in makers.items()}
    return {"checkpoint": _differences("denoiser", _denoiser_alone(tensors)),
            "wrong": wrong, "stack": stacked, "strangers": strangers, "agreed": agreed, "layers": len(layers),
            "missing": missing, "known": len(targets.exact), "names": {maker: len(names) for maker, names in makers.items()}}


def is_of_a_relative(name: str, family: str) -> bool:
    """The host has one table for FLUX.1, FLUX.2 and Chroma; no program writes the names of one for another."""
    relatives, first = {"flux", "flux2", "chroma"}, re.sub(r"(?<=blocks[._])\d+", "0", name)
    return family in relatives and any(family_names(each).find(first) for each in relatives - {family})


def plain_target(target):
    """A target of the host's as it is written down: its weight, rows, and the name of what is done to a change."""
    if target is None or isinstance(target, str):
        return target, None, None
    return target[0], target[1], getattr(target[2], "__name__", None) if len(target) > 2 else None


def peft_scales() -> dict:
    """Relative error of the stack, of the inspector's norms and of the file tools against peft's own merged weights."""
    from diffusers import UNet2DConditionModel
    from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

    common = {"target_modules": ["to_q", "to_k", "conv1"], "r": 4, "rank_pattern": {"attn2.to_q": 2}}
    configs = {
        "lora": LoraConfig(**common, lora_alpha=2, alpha_pattern={"attn1.to_q": 12}, init_lora_weights=False),
        "rslora": LoraConfig(**common, lora_alpha=2, use_rslora=True, init_lora_weights=False),
        "loha": LoHaConfig(**common, alpha=2, alpha_pattern={"attn1.to_q": 12}, init_weights=False),
        "lokr": LoKrConfig(**common, alpha=2, alpha_pattern={"attn1.to_q": 12}, init_weights=False),
        "lokr, whole factors": LoKrConfig(**{**common, "r": 400, "rank_pattern": {}}, alpha=100, init_weights=False),
    }
    model, _, _ = host.load_native(host.DEMO_BASE)
    folder_paths.add_model_folder_path("loras", str(FOLDER))
    base = UNet2DConditionModel.from_pretrained(host.DEMO_BASE / "unet").state_dict()
    result = {}
    for title, config in configs.items():
        torch.manual_seed(0)
        adapted = get_peft_model(UNet2DConditionModel.from_pretrained(host.DEMO_BASE / "unet"), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5 if title == "loha" else 0.3)  # products of four numbers are small
        adapted.save_pretrained(FOLDER / title)
        folder_paths.filename_list_cache.clear()
        merged, name = adapted.merge_and_unload().state_dict(), f"{title}/adapter_model.safetensors"
        patched, _, _ = host.apply_stack(model, None, [LoraEntry(name)])
        targets = Targets(model, None)
        file, worst = read_lora(FOLDER / name), {"stack": 0.0, "file": 0.0}
        weights = model.model.state_dict()
        for key, layer in file.layers.items():
            module = key.removeprefix("base_model.model.")
            meant = merged[f"{module}.weight"] - base[f"{module}.weight"]
            target = targets.find(key)
            zero = torch.zeros_like(weights[target], dtype=torch.float32)
            acts = comfy.lora.calculate_weight(patched.patches[target], zero, target)
            for way, found in (("stack", acts), ("file", layer.change())):
                error = float((found.reshape(meant.shape) - meant).norm() / meant.norm())
                worst[way] = max(worst[way], error)
        result[title] = {**worst, "layers": len(file.layers), "inspected": str(inspect_lora(model, None, name)[0].matched)}
    return result


if __name__ == "__main__":
    results = {family: names(family) for family in ("sd1", "sd2", "sdxl")} | {"peft": peft_scales()}
    results |= {release: transformer_names(release) for release in full_flow.RELEASES}
    (FOLDER / "results.json").write_text(json.dumps(results), encoding="utf-8")
