"""Does every kind of adapter act in ComfyUI as it did in training? Run by test_adapters.py in a process of its own.

    python tests/host/adapter_effects.py <ComfyUI> <folder for files>

Tiny models of two families and the demo base are trained for a few steps. Then, once for each layer, the weight that
ComfyUI's own loader makes from the file is compared with the trained layer; and for the demo base a whole denoising call.
"""
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

load_pack()
become_host(Path(sys.argv[1]))

import comfy.cli_args  # noqa: E402
import comfy.lora  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
from finetune.nodes import host  # noqa: E402
from finetune.nodes.host.native import host_model, host_text_options  # noqa: E402
from finetune.trainers import spec as specs  # noqa: E402
from finetune.trainers.accelerator import make_accelerator  # noqa: E402
from finetune.trainers.data.manifest import scan_folder  # noqa: E402
from finetune.trainers.events import silent  # noqa: E402
from finetune.trainers.families.component_configs import component_config  # noqa: E402
from finetune.trainers.families.recognition import recognize  # noqa: E402
from finetune.trainers.methods import adapters  # noqa: E402
from finetune.trainers.run_folder import open_run  # noqa: E402
from finetune.trainers.training.run import Training  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support import tiny  # noqa: E402

comfy.cli_args.args.fp32_text_enc = True  # it would round what it merges to fp16, whatever the file's precision
COMMON = dict(rank=4, alpha=2, targets="all with convolutions", text_encoder_learning_rate=1e-2, file_precision="fp32")
KINDS = {
    "lora": specs.LoraSpec(**COMMON, convolution_rank=3, convolution_alpha=2, rank_stabilized=True, block_ranks="up=100"),
    "dora": specs.LoraSpec(**COMMON, adapter="dora"),
    "loha": specs.LoraSpec(**COMMON, adapter="loha", convolution_rank=2),
    "lokr": specs.LoraSpec(**COMMON, adapter="lokr"),  # rank 4: layers of both forms
    "lokr, whole factors": specs.LoraSpec(**{**COMMON, "rank": 100, "alpha": 100}, adapter="lokr", kronecker_factor=4),
}
PROMPT = "noto emoji of a lion"


def trained(base, method, images, folder: Path, steps: int) -> Training:
    """A finished training with its modules still in memory, in evaluation mode."""
    spec = specs.RunSpec(
        name="run", base=base, dataset=images, method=method, optimizer=specs.OptimizerSpec(learning_rate=1e-2),
        training=specs.TrainingSpec(steps=steps, batch_size=2, resolution=64), checkpoints=specs.CheckpointSpec(every=0),
        folders=specs.FolderSpec(runs=str(folder), caches=str(folder.parent / "caches")), device="cpu")
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    training.execute()
    for module in (training.parts.denoiser, training.parts.text):
        module.requires_grad_(False).eval()
    return training


def compare_layers(training: Training) -> dict:
    """By kind of layer: the largest difference of its output from that with the host's weight, and the smallest change of
    its output by training, both relative to the output."""
    base = training.spec.base
    _, denoiser = host_model(component_config(base, "unet"), base.family, {}, device="meta")
    key_map = comfy.lora.model_lora_keys_unet(denoiser, {})
    options = host_text_options(component_config(base, "text_encoder")) if base.family == "sd1" else {}
    text_class = {"sd1": comfy.sd1_clip.SD1ClipModel, "sdxl": comfy.sdxl_clip.SDXLClipModel}[base.family]
    key_map = comfy.lora.model_lora_keys_clip(
        text_class(device="meta", dtype=torch.float32, model_options=options), key_map)
    patches = comfy.lora.load_lora(load_file(training.run.artifact), key_map)
    shapes = {name: tensor.shape for name, tensor in denoiser.state_dict().items()}
    family, generator, found = training.family, torch.Generator().manual_seed(0), {}
    modules = [("denoiser", training.parts.denoiser), *training.parts.text.encoders.items()]
    for part, module in modules:
        for name, layer in adapters.adapter_layers(module):
            key = key_map[family.denoiser_key(module, name) if part == "denoiser" else family.text_key(part, name)]
            plain = layer.get_base_layer()
            convolution = isinstance(plain, torch.nn.Conv2d)
            assert part != "denoiser" or shapes[key] == plain.weight.shape, key
            weight = comfy.lora.calculate_weight([(1.0, patches.pop(key), 1.0, None, None)], plain.weight.clone(), key)
            shape = (4, layer.in_features, 8, 8) if convolution else (64, layer.in_features)
            inputs = torch.randn(shape, generator=generator)
            ours, before = layer(inputs), plain(inputs)
            theirs = (torch.nn.functional.conv2d(inputs, weight, plain.bias, plain.stride, plain.padding) if convolution
                      else torch.nn.functional.linear(inputs, weight, plain.bias))
            kind = f"{part} {'x'.join(map(str, plain.kernel_size)) if convolution else 'linear'}"
            error, change = found.get(kind, (0.0, float("inf")))
            found[kind] = (max(error, distance(theirs, ours)), min(change, distance(ours, before)))
    assert not patches, f"the file holds more than was trained: {list(patches)[:3]}"
    return found


def unmatched(training: Training) -> list[str]:
    """What the pack's own check says about the file with two keys added that no loader knows."""
    base, lora = training.spec.base, load_file(training.run.artifact)
    if base.family == "sdxl":  # the host has its text encoders in the released size only
        lora = {key: tensor for key, tensor in lora.items() if key.startswith("lora_unet_")}
    layer = next(iter(lora)).split(".")[0]
    lora |= {f"{layer}.unknown": torch.zeros(1), "lora_unet_nowhere.alpha": torch.ones(())}
    found = host.unmatched_keys(lora, base.family, component_config(base, "unet"), component_config(base, "text_encoder"))
    return [key.replace(layer, "layer") for key in found]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def compare_denoising(training: Training, folder: Path, name: str) -> dict:
    """One denoising call of the host with the file, and with none, against the engine's own. Relative to the latter."""
    generator = torch.Generator().manual_seed(1)
    noise, results = torch.randn((1, 4, 8, 8), generator=generator), {}
    for precision in ("none", "fp32", "fp16"):
        model, clip, _ = host.load_native(host.DEMO_BASE)
        if precision != "none":
            training.method.spec = training.method.spec.model_copy(update={"file_precision": precision})
            training.method.save(training.parts, folder, f"{name} {precision}", {})
            lora = load_file(folder / f"{name} {precision}.safetensors")
            model, clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
        hidden = clip.encode_from_tokens(clip.tokenize(PROMPT))
        comfy.model_management.load_models_gpu([model])
        sigmas = model.model.model_sampling.sigmas
        sigma = sigmas[len(sigmas) // 2].view(1)
        noisy = noise * sigma
        denoised = model.model.apply_model(noisy, sigma, c_crossattn=hidden)
        conditioning = training.family.encode_captions(training.parts.text, [PROMPT])
        predicted = training.family.predict(
            training.parts.denoiser, noisy / (sigma**2 + 1).sqrt(), torch.tensor([len(sigmas) // 2]), conditioning)
        results[precision] = {
            "text": distance(hidden, conditioning["hidden"]), "denoised": distance(denoised, noisy - sigma * predicted)}
    return results


def main():
    folder, results = Path(sys.argv[2]), {}
    squares = scan_folder(str(tiny.make_images(folder / "squares")), "squares")
    emoji = scan_folder(str(ROOT / "example_datasets" / "openmoji"), "emoji")
    bases = {family: recognize(str(tiny.make_folder(family, folder / family)), family) for family in ("sd1", "sdxl")}
    demo = recognize(str(host.DEMO_BASE), "demo")
    with torch.no_grad():
        for kind, method in KINDS.items():
            results[kind] = {}
            for family, base in bases.items():
                with torch.enable_grad():
                    training = trained(base, method, squares, folder / f"{kind} {family}", 4)
                results[kind][family] = {"layers": compare_layers(training), "unmatched": unmatched(training)}
            with torch.enable_grad():
                training = trained(demo, method, emoji, folder / f"{kind} demo", 3)
            results[kind]["demo"] = compare_denoising(training, folder, kind)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
