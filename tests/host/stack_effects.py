"""Run as a script with a folder of ComfyUI and a folder for files: puts stacks on small native models and compares.

    python tests/host/stack_effects.py COMFYUI FOLDER

Writes FOLDER/results.json, largest differences and facts; test_stack_effects.py says what they must be. A process of its
own,
because ComfyUI's modules would stay in the tests' process.
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

become_host(Path(sys.argv[1]))
sys.path.append(str(ROOT / "tests"))
load_pack()
import comfy.lora  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

torch.set_grad_enabled(False)
FOLDER = Path(sys.argv[2])
folder_paths.set_output_directory(str(FOLDER))
folder_paths.add_model_folder_path("loras", str(FOLDER / "loras"))
(FOLDER / "loras").mkdir(parents=True, exist_ok=True)

from finetune.nodes import host  # noqa: E402
from finetune.nodes.host.native import host_model, host_unet_config  # noqa: E402
from finetune.nodes.host.stack import Targets  # noqa: E402
from finetune.trainers.artifacts.layer_names.blocks import BLOCKS, place  # noqa: E402
from finetune.trainers.errors import UserError  # noqa: E402
from finetune.trainers.stacking import LoraEntry, StackRow, entries_from  # noqa: E402

MODEL, CLIP, _ = host.load_native(host.DEMO_BASE)
DRAW = torch.Generator().manual_seed(0)
Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
WEIGHT = f"diffusion_model.{Q}.weight"
RANK = 4


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW)


def write(name: str, tensors: dict, metadata: dict | None = None) -> str:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, FOLDER / "loras" / name, metadata=metadata)
    folder_paths.filename_list_cache.clear()
    return name


def kohya(name: str, model=MODEL, clip=CLIP, size: float = 0.05) -> str:
    """A LoRA of every layer that has two dimensions or more, convolutions too, by kohya's names."""
    names, shapes = comfy.lora.model_lora_keys_unet(model.model, {}), dict(model.model.state_dict())
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
        shapes |= clip.cond_stage_model.state_dict()
    tensors, done = {}, set()
    for layer, target in names.items():
        wanted = layer.startswith(("lora_unet_", "lora_te_"))
        if not wanted or not isinstance(target, str) or target in done or target not in shapes or shapes[target].ndim < 2:
            continue
        done.add(target)
        out, *rest = shapes[target].shape
        tensors[f"{layer}.lora_down.weight"] = noise(RANK, *rest) * size
        tensors[f"{layer}.lora_up.weight"] = noise(out, RANK, *[1] * (len(rest) - 1)) * size
        tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    return write(name, tensors)


def weights_of(model, clip) -> dict[str, torch.Tensor]:
    weights = dict(model.model.state_dict())
    return weights | (clip.cond_stage_model.state_dict() if clip is not None else {})


def loaded(model, clip) -> dict[str, torch.Tensor]:
    """Copies of all weights after the host has patched them, as the sampler will find them."""
    weights = {}
    for patcher in (model, clip.patcher):
        comfy.model_management.load_models_gpu([patcher], force_patch_weights=True)
        weights |= {name: tensor.clone() for name, tensor in patcher.model.state_dict().items()}
    comfy.model_management.unload_all_models()
    return weights


def stacked(entries: list, model=MODEL, clip=CLIP) -> dict[str, torch.Tensor]:
    """All weights with a stack, in float32, by the host's function for patched weights; the others are the base's own."""
    patched, text, _ = host.apply_stack(model, clip, entries)
    weights = weights_of(model, clip)
    for patcher in [patched, *([text.patcher] if text is not None else [])]:
        for key, patches in patcher.patches.items():
            weights[key] = comfy.lora.calculate_weight(patches, weights[key].to(torch.float32, copy=True), key)
    return weights


def chained(entries: list) -> dict[str, torch.Tensor]:
    from nodes import LoraLoader

    model, clip = MODEL, CLIP
    for name, strength, text in entries:
        model, clip = LoraLoader().load_lora(model, clip, name, strength, text)
    return loaded(model, clip)


def largest(one: dict, other: dict) -> float:
    return max((float((one[name].float() - other[name].float()).abs().max()) for name in one
                if one[name].data_ptr() != other[name].data_ptr()), default=0.0)


def changed(one: dict, other: dict) -> set[str]:
    return {name for name in one if one[name].data_ptr() != other[name].data_ptr()
            and not torch.equal(one[name].float(), other[name].float())}


def sentence(*entries) -> str:
    try:
        host.apply_stack(MODEL, CLIP, [LoraEntry(*entry) for entry in entries])
    except UserError as problem:
        return str(problem)
    return ""


# ---- comparisons ---------------------------------------------------------------------------------------------------

def plain_strengths() -> dict:
    names = [kohya(f"kohya_{number}.safetensors") for number in range(3)]
    entries = [LoraEntry(name, model, text) for name, model, text in zip(names, (0.8, -0.3, 1.5), (0.5, 0.0, 1.0))]
    base = loaded(MODEL, CLIP)
    patched, text, reports = host.apply_stack(MODEL, CLIP, entries)
    stack, chain = loaded(patched, text), chained(entries)
    unet = [name for name in chain if name.startswith("diffusion_model.")]
    offloaded = {key: comfy.model_patcher.LowVramPatch(key, rebuilt(patched.patches)) for key in patched.patches}
    lowvram = {key: patch(base[key].clone()) for key, patch in offloaded.items()}
    halves = {key: patch(base[key].half()) for key, patch in offloaded.items()}
    return {
        "unet to the chain": largest({name: stack[name] for name in unet}, chain),
        "text to the chain": largest({name: tensor for name, tensor in stack.items() if name not in unet}, chain),
        "of the chain to the base": largest(chain, base),
        "offloaded weights to the chain": largest(lowvram, chain),
        "offloaded half weights to the chain": largest(halves, chain),
        "patches per weight": max(len(patches) for patches in patched.patches.values()),
        "lines": [line for report in reports for line in report.lines()],
        "base afterwards": largest(loaded(MODEL, CLIP), base),
        # What other packs' loaders do with a stack.
        "consumer": [[Path(folder_paths.get_full_path("loras", name)).is_file(), model, strength]
                     for name, model, strength in entries],
    }


def rebuilt(patches: dict) -> dict:
    """Patches as newer hosts make them anew when they have moved their tensors; elsewhere as they are."""
    if not hasattr(comfy.lora, "prefetch_prepared_value"):
        return patches
    prepared = comfy.lora.prefetch_prepared_value
    return {key: [(patch[0], prepared(patch[1], [0], None, None, False), *patch[2:]) for patch in all_]
            for key, all_ in patches.items()}


def block_weights(model, clip, name: str, family: str) -> dict:
    def of(blocks: str = "", strength: float = 1.0) -> dict:
        row = StackRow(lora=name, model=strength, text=strength, blocks=blocks)
        return stacked([LoraEntry(name, strength, strength, row)], model, clip)

    base, whole, half = weights_of(model, clip), of(), of(strength=0.5)
    found = {place(weight, family).block for weight in changed(base, whole)}
    total = {weight: torch.zeros(base[weight].shape) for weight in changed(base, whole)}
    strangers, missing = [], []
    for block in BLOCKS[family]:
        if block not in found:
            continue
        alone = of(f"%default=0, {block}=1")
        touched = changed(base, alone)
        strangers += [weight for weight in touched if place(weight, family).block != block]
        missing += [] if touched else [block]
        for weight in touched:
            total[weight] += alone[weight] - base[weight]
    everywhere = ", ".join(f"{block}=0.5" for block in BLOCKS[family])
    length = 26 if family == "sd1" else 20
    return {
        "blocks": len(found), "strangers": strangers, "without effect": missing,
        "sum to the whole": largest(total, {weight: whole[weight] - base[weight] for weight in total}),
        "half everywhere to strength 0.5": max(
            largest(of(text), half) for text in ("ALL0.5", "%default=0.5", everywhere, ",".join(["0.5"] * length))),
        "whole to the base": largest(whole, base),
    }


def factors() -> dict:
    """Only weights of a kind change when the other kinds' factors are 0."""
    base, name, kinds = weights_of(MODEL, CLIP), "kohya_0.safetensors", ("attention", "feed_forward", "convolution")
    result = {}
    for kind in kinds:
        row = StackRow(lora=name, **{other: float(other == kind) for other in kinds})
        touched = changed(base, stacked([LoraEntry(name, 1.0, 1.0, row)]))
        result[kind] = sorted({place(weight).kind for weight in touched})
    return result


def sdxl() -> comfy.model_patcher.ModelPatcher:
    from support import tiny

    torch.manual_seed(0)
    config = dict(tiny.make_unet("sdxl").config)
    _, model = host_model(config, "sdxl", {}, device=torch.device("cpu"))
    for parameter in model.parameters():
        parameter.copy_(noise(*parameter.shape) * 0.05)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


# ---- files of other makers -----------------------------------------------------------------------------------------

def makers() -> dict:
    weight = weights_of(MODEL, CLIP)[WEIGHT].float()
    out, into = weight.shape
    layer = "lora_unet_" + Q.replace(".", "_")
    up, down, other_up, other_down = noise(out, 4) * 0.1, noise(4, into) * 0.1, noise(out, 4), noise(4, into)
    result = {}

    def compare(title: str, tensors: dict, expected: torch.Tensor, metadata: dict | None = None, strength: float = 1.0):
        name = write(f"{title}.safetensors", tensors, metadata)
        value = stacked([LoraEntry(name, strength, strength)])[WEIGHT]
        result[title] = float((value - expected).abs().max() / (expected - weight).abs().max())

    compare("kohya", {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down, f"{layer}.alpha": torch.tensor(2.0)},
            weight + 0.5 * up @ down)
    compare("LoHa", {f"{layer}.hada_w1_a": up, f"{layer}.hada_w1_b": down, f"{layer}.hada_w2_a": other_up,
                     f"{layer}.hada_w2_b": other_down, f"{layer}.alpha": torch.tensor(2.0)},
            weight + 0.5 * (up @ down) * (other_up @ other_down))
    small, large = noise(4, 4) * 0.1, noise(out // 4, 2)
    right = noise(2, into // 4)
    compare("LoKr", {f"{layer}.lokr_w1": small, f"{layer}.lokr_w2_a": large, f"{layer}.lokr_w2_b": right,
                     f"{layer}.alpha": torch.tensor(1.0)}, weight + torch.kron(small, 0.5 * large @ right))
    # A full LoKr factor has no rank; trainers write an alpha all the same, which does not count.
    full = noise(out // 4, into // 4) * 0.1
    compare("LoKr full", {f"{layer}.lokr_w1": small, f"{layer}.lokr_w2": full, f"{layer}.alpha": torch.tensor(1e6)},
            weight + torch.kron(small, full))
    compare("SaveLoRA", {f"diffusion_model.{Q}.lora_up.weight": up, f"diffusion_model.{Q}.lora_down.weight": down,
                         f"diffusion_model.{Q}.alpha": torch.tensor(2.0)}, weight + 0.5 * up @ down)
    merged = weight + 0.5 * up @ down
    rows = noise(out, 1).abs() + 0.5
    dora = merged * rows / merged.norm(dim=1, keepdim=True)
    tensors = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down, f"{layer}.alpha": torch.tensor(2.0)}
    compare("DoRA, output axis", {**tensors, f"{layer}.dora_scale": rows}, dora)
    compare("DoRA, half strength", {**tensors, f"{layer}.dora_scale": rows}, weight + 0.5 * (dora - weight), strength=0.5)
    columns = noise(1, into).abs() + 0.5
    compare("DoRA, input axis", {**tensors, f"{layer}.dora_scale": columns},
            merged * columns / merged.norm(dim=0, keepdim=True))
    compare("full difference", {f"{layer}.diff": up @ down}, weight + up @ down)
    result |= with_peft(weight)
    return result


def lycoris() -> dict:
    """Files with the layers that the LyCORIS package made, at half strength; the expectation is half of the way from the
    base to the weight that its layers act with."""
    layers = load_file(ROOT / "tests" / "data" / "lycoris_layers.safetensors")
    base, result = layers["base"], {}
    for variant in sorted({key.split("/")[0] for key in layers if "/" in key}):
        tensors = {key.split("/")[1]: tensor for key, tensor in layers.items() if key.startswith(f"{variant}/")}
        effective = tensors.pop("effective")
        patched = host.apply_stack(MODEL, None, [LoraEntry(write("lycoris.safetensors", tensors), 0.5)])[0]
        value = comfy.lora.calculate_weight(patched.patches[WEIGHT], base.clone(), WEIGHT)
        result[variant] = float((value - (base + effective) / 2).abs().max() / (effective - base).abs().max())
    return result


def with_peft(weight: torch.Tensor) -> dict:
    """Files that diffusers and peft write themselves; the expectation is peft's own merged weight."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    result = {}
    variants = {"diffusers": {}, "diffusers, rsLoRA": {"use_rslora": True}, "diffusers, DoRA": {"use_dora": True},
                "peft": {}}
    for title, options in variants.items():
        unet = UNet2DConditionModel.from_pretrained(host.DEMO_BASE / "unet")
        config = LoraConfig(r=4, lora_alpha=10, target_modules=["to_q", "to_out.0"], init_lora_weights=False, **options)
        adapted = get_peft_model(unet, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.copy_(noise(*parameter.shape) * 0.05)
        folder = FOLDER / "loras" / title
        if title == "peft":
            adapted.save_pretrained(folder)
            name = f"{title}/adapter_model.safetensors"
        else:
            StableDiffusionPipeline.save_lora_weights(
                folder, unet_lora_layers=get_peft_model_state_dict(adapted), unet_lora_adapter_metadata=config.to_dict())
            name = f"{title}/pytorch_lora_weights.safetensors"
        folder_paths.filename_list_cache.clear()
        merged = adapted.merge_and_unload().state_dict()
        names = {native: diffusers for diffusers, native in comfy.utils.unet_to_diffusers(
            host_unet_config(dict(unet.config))).items()}
        patched = stacked([LoraEntry(name)])
        worst, effect = 0.0, 0.0
        before = weights_of(MODEL, CLIP)
        for native, diffusers in names.items():
            if diffusers in merged and native.endswith("weight"):
                key = f"diffusion_model.{native}"
                worst = max(worst, float((patched[key] - merged[diffusers]).abs().max()))
                effect = max(effect, float((patched[key] - before[key]).abs().max()))
        result[title] = worst / effect
    return result


def order_of_dora() -> dict:
    """A DoRA before a LoRA is another model than behind it, each as the chain of two steps says."""
    weight = weights_of(MODEL, CLIP)[WEIGHT].float()
    layer = "lora_unet_" + Q.replace(".", "_")
    up, down = noise(len(weight), 4) * 0.1, noise(4, weight.shape[1]) * 0.1
    rows = noise(len(weight), 1).abs() + 0.5
    plain = write("plain.safetensors", {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down})
    dora = write("dora.safetensors", {f"{layer}.lora_up.weight": 2 * up, f"{layer}.lora_down.weight": down,
                                      f"{layer}.dora_scale": rows})
    change = up @ down

    def decomposed(value):
        merged = value + 2 * change
        return merged * rows / merged.norm(dim=1, keepdim=True)

    first = stacked([LoraEntry(dora), LoraEntry(plain)])[WEIGHT]
    last = stacked([LoraEntry(plain), LoraEntry(dora)])[WEIGHT]
    between = stacked([LoraEntry(plain), LoraEntry(dora), LoraEntry(plain)])[WEIGHT]
    return {
        "DoRA first": float((first - decomposed(weight) - change).abs().max()),
        "DoRA last": float((last - decomposed(weight + change)).abs().max()),
        "DoRA between": float((between - decomposed(weight + change) - change).abs().max()),
        "difference of the orders": float((first - last).abs().max()),
    }


def spellings() -> dict:
    """Layers by names that the host leaves unloaded reach the same weights as those by names that it loads."""
    text = "encoder.layers.0.self_attn.q_proj"
    cases = {
        f"lora_te_text_model_{text.replace('.', '_')}": ["lora_te_" + text.replace(".", "_"), f"text_encoder.{text}",
                                                          f"te1.text_model.{text}", f"text_encoder.text_model.{text}"],
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0": [
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out",
            "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "lycoris_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
            "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0",
        ],
    }
    targets = Targets(MODEL, CLIP)
    return {name: targets.find(name) == targets.exact[known] for known, names in cases.items() for name in names}


def refusals() -> dict:
    wide = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": noise(4, 2048),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": noise(640, 4)}
    other = write("sdxl.safetensors", wide)
    (FOLDER / "loras" / "broken.safetensors").write_bytes(b"\xff" * 100)
    (FOLDER / "loras" / "short.safetensors").write_bytes((FOLDER / "loras" / "kohya_0.safetensors").read_bytes()[:-100])
    folder_paths.filename_list_cache.clear()
    model, clip, _ = host.apply_stack(MODEL, CLIP, [LoraEntry("kohya_0.safetensors", 0.0, 0.0)])
    only_model = host.apply_stack(MODEL, None, [LoraEntry("kohya_0.safetensors")])
    return {
        "family": sentence([other]), "broken": sentence(["broken.safetensors"]), "short": sentence(["short.safetensors"]),
        "missing": sentence(["../../secret.safetensors"]),
        "strength 0 gives the same objects": model is MODEL and clip is CLIP,
        "empty gives the same objects": host.apply_stack(MODEL, None, [])[:2] == (MODEL, None),
        "no clip": only_model[1] is None and only_model[2][0].lines(),
        "four tuples": [list(entry) for entry in entries_from([("a", 1, 0.5, "words"), ("None", 1, 1), ["b", 0.5, 0.5]])],
    }


def cache() -> dict:
    """A file is read once, and anew when it changed."""
    from finetune.nodes.host import lora_files

    name = "kohya_1.safetensors"
    first, second = host.read_lora(name), host.read_lora(name)
    kohya(name)
    third = host.read_lora(name)
    kept = sum(key[0].endswith(name) for key in lora_files._read)
    return {"once": first is second, "anew": third is not first, "kept": kept}


if __name__ == "__main__":
    results = {"plain": plain_strengths(), "sd1 blocks": block_weights(MODEL, CLIP, "kohya_0.safetensors", "sd1")}
    large = sdxl()
    results["sdxl blocks"] = block_weights(large, None, kohya("sdxl_blocks.safetensors", large, None), "sdxl")
    results |= {"factors": factors(), "makers": makers(), "lycoris": lycoris(), "order": order_of_dora(),
                "spellings": spellings(), "refusals": refusals(), "cache": cache()}
    (FOLDER / "results.json").write_text(json.dumps(results), encoding="utf-8")
