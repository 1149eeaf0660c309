"""Does ComfyUI load our LoRAs on full-size models by its own nodes?

    python -m benchmarks.native_loading

First a real server: a LoRA of every adaptable layer, text encoder included, is trained by the nodes on a Stable Diffusion
1.x checkpoint of full size with random weights and applied by the core's LoraLoader. Then, without weights, all families at
full size: the file of every choice of targets and of every kind of adapter is compared with the host's key map
(`--key-maps` does only this).
"""
import argparse
import json
import tempfile
from pathlib import Path

from .full_size import make_checkpoint
from .pack import become_host, comfyui_folder, load_pack, use_scripts
from .report import finish

CHECKPOINT = "random.safetensors"
STEPS, LEARNING_RATE = 2, 1e-2  # AdamW's first steps are as long as the learning rate: two long ones show
KINDS = ("lora", "dora", "loha", "lokr")
COMPLAINTS = ("lora key not loaded", "ERROR lora")
"""What the host logs for a key that it does not know, and for one whose shape does not fit."""


# ---- a real server -------------------------------------------------------------------------------------------------

def training() -> dict:
    return {
        "base": {"class_type": "FineTuneBaseModel", "inputs": {"checkpoint": CHECKPOINT, "prediction": "auto"}},
        "data": {"class_type": "FineTuneLoadImageDataset", "inputs": {
            "folder": "examples/openmoji", "trigger": "", "default_caption": "", "repeats": 1}},
        "train": {"class_type": "FineTuneTrainLora", "inputs": {
            "base": ["base", 0], "dataset": ["data", 0], "name": "full_size", "preset": "custom", "steps": STEPS,
            "learning_rate": LEARNING_RATE, "rank": 4, "alpha": 4.0, "targets": "all with convolutions", "batch_size": 1,
            "resolution": 64, "text_encoder_learning_rate": LEARNING_RATE, "preview_prompts": "",
            "training_seed": 0}},
    }


def loading(name: str, strength: float) -> dict:
    return {name: {"class_type": "LoraLoader", "inputs": {
        "model": ["checkpoint", 0], "clip": ["checkpoint", 1], "lora_name": ["train", 2], "strength_model": strength,
        "strength_clip": strength}}}


def sampling(source: str) -> dict:
    """Two sampler steps with the model and text encoder of the node `source`, saved under its name."""
    def encoded(text: str) -> dict:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": [source, 1], "text": text}}

    return {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        f"{source} positive": encoded("a fox"), f"{source} negative": encoded(""),
        f"{source} sample": {"class_type": "KSampler", "inputs": {
            "model": [source, 0], "positive": [f"{source} positive", 0], "negative": [f"{source} negative", 0],
            "latent_image": ["latent", 0], "seed": 1, "steps": 2, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0}},
        f"{source} save": {"class_type": "SaveLatent", "inputs": {
            "samples": [f"{source} sample", 0], "filename_prefix": source}},
    }


def run_server(folder: Path) -> tuple[list[dict], dict]:
    """Train, apply with strength 1, apply with strength 0; compare with the bare checkpoint."""
    use_scripts()
    from environment import describe
    from host_server import HostServer
    from safetensors.torch import load_file

    checkpoints = folder / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    print("Writing a random checkpoint of full size ...", flush=True)
    make_checkpoint(checkpoints / CHECKPOINT)
    with HostServer(describe(), folder) as host:
        def latents(source: str, prompt: dict):
            print(f"{source} ...", flush=True)
            host.run({**prompt, **sampling(source)})
            return load_file(next(host.output.glob(f"{source}_*.latent")))["latent_tensor"]

        without = latents("checkpoint", {})
        full = latents("full", {**training(), **loading("full", 1.0)})
        none = latents("none", {**training(), **loading("none", 0.0)})
        report = json.loads((host.output / "finetune" / "full_size" / "report.json").read_text(encoding="utf-8"))
        log = host.log.read_text(encoding="utf-8", errors="replace").splitlines()
        complaints = [line for line in log if any(complaint in line for complaint in COMPLAINTS)]
    change = float((full - without).norm() / without.norm())
    difference = float((none - without).abs().max())
    results = [
        row(f"layers of the LoRA trained on full-size SD 1.5 ({report.keys} keys)", report.layers, "layers", "> 300",
            report.layers > 300),
        row("LoRA keys that the server's log says were not loaded", len(complaints), "lines", "0", not complaints),
        row("relative change of the latents at strength 1", change, "ratio", "> 0.001", 0.001 < change < float("inf")),
        row("largest difference of the latents at strength 0", difference, "absolute", "0", difference == 0),
    ]
    return results, {"report": report, "complaints": complaints}


# ---- all families without weights ----------------------------------------------------------------------------------

def shapes_only(family: str):
    """(UNet, text encoders by their names in LoRA files, configs) at full size on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel
    from finetune.trainers.families.component_configs import CONFIGS
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    folder = CONFIGS / family
    classes = {"text_encoder": CLIPTextModel}
    if (folder / "text_encoder_2").exists():
        classes["text_encoder_2"] = CLIPTextModelWithProjection
    names = ["te"] if len(classes) == 1 else ["te1", "te2"]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
        text = {
            name: text_class(CLIPTextConfig.from_pretrained(folder / part))
            for name, (part, text_class) in zip(names, classes.items())
        }
    configs = [json.loads((folder / part / "config.json").read_text("utf-8")) for part in ("unet", "text_encoder")]
    return unet, text, configs


def exported(family: str, fields: dict, unet, text: dict, path: Path) -> dict:
    """The tensors of the file that a run with these fields of a LoraSpec would end in."""
    from finetune.trainers import families, methods
    from finetune.trainers.families.protocol import TextEncoders
    from finetune.trainers.methods.protocol import Parts
    from finetune.trainers.spec import LoraSpec
    from safetensors.torch import load_file

    spec = LoraSpec(rank=1, alpha=1, **fields, text_encoder_learning_rate=1e-4)
    method = methods.make(spec, 1e-4, families.get(family))
    parts = Parts(families.get(family), unet, TextEncoders({}, text), None)
    method.attach(parts, seed=0)
    for module in (unet, *text.values()):
        fill_adapters(module)
    saved = method.save(parts, path.parent, path.stem, {})
    return load_file(path.parent / saved.files[0].name)


def fill_adapters(module):
    """Real zeros for the adapters; the frozen weights stay shapes."""
    import torch
    from finetune.trainers.methods import adapters

    for _, layer in adapters.adapter_layers(module):
        for part in list(layer.modules()):
            for name, parameter in list(part.named_parameters(recurse=False)):
                if parameter.requires_grad:
                    replace(part, name, torch.nn.Parameter(torch.zeros(parameter.shape)))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, torch.zeros(buffer.shape))
        if hasattr(layer, "lengths"):  # it looks at the frozen weight
            frozen = layer.get_base_layer()
            frozen.weight = torch.nn.Parameter(torch.zeros(1).expand(frozen.weight.shape), requires_grad=False)


def replace(part, name: str, parameter):
    import torch

    if isinstance(part, torch.nn.ParameterDict):
        part[name] = parameter
    else:
        setattr(part, name, parameter)


def compare_key_maps(folder: Path) -> tuple[list[dict], dict]:
    """Every choice of targets and every kind of adapter for every family, text encoders included."""
    become_host(comfyui_folder())
    load_pack()
    from finetune.nodes import host
    from finetune.trainers import families

    results, unmatched = [], {}
    for family in families.NAMES:
        *few, most = families.get(family).lora_targets
        for targets, adapter in [*((each, "lora") for each in few), *((most, each) for each in KINDS)]:
            unet, text, configs = shapes_only(family)
            lora = exported(family, {"targets": targets, "adapter": adapter}, unet, text, folder / "shapes.safetensors")
            missing = host.unmatched_keys(lora, family, *configs)
            unmatched[f"{family}, {targets}, {adapter}"] = missing
            print(f"{family}, {targets}, {adapter}: {len(missing)} of {len(lora)} keys unmatched", flush=True)
            results.append(row(f"unmatched of {len(lora)} keys: {family}, {targets}, {adapter}, text encoders", len(missing),
                               "keys", "0", not missing))
    return results, unmatched


def row(measure: str, value: float, unit: str, goal: str, met: bool) -> dict:
    return {"measure": measure, "value": value, "unit": unit, "goal": goal, "met": met}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key-maps", action="store_true", help="only compare names; writes no result")
    arguments = parser.parse_args()
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.key_maps:
            results, _ = compare_key_maps(Path(folder))
            raise SystemExit(0 if all(result["met"] for result in results) else 1)
        served, details = run_server(Path(folder))
        compared, unmatched = compare_key_maps(Path(folder))
    finish("native_loading", [*served, *compared], {**details, "unmatched": unmatched})


if __name__ == "__main__":
    main()
