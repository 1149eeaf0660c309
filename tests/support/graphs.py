"""API prompts and files that the host and browser tests share, and what comes out of them."""
import copy
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

DEMO_BASE = Path(__file__).resolve().parents[2] / "demo_base"


def images_of(host, outputs: dict, node: str) -> np.ndarray:
    """The images that a SaveImage node wrote, float32 [count, height, width, 3] in 0…1."""
    files = [host.output / image["subfolder"] / image["filename"] for image in outputs[node]["images"]]
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files])


SETTINGS = {
    "lora_settings": ("FineTuneLoraSettings", {
        "adapter": "lora", "dropout": 0.0, "file_precision": "fp16", "convolution_rank": 0, "convolution_alpha": 0.0,
        "block_ranks": "", "block_learning_rates": "", "lora_plus_ratio": 1.0, "rslora": False, "lokr_factor": -1,
        "target_pattern": ""}),
    "memory": ("FineTuneMemory", {
        "precision": "auto", "gradient_checkpointing": False, "frozen_precision": "same", "compile": False}),
    "previews_and_checkpoints": ("FineTunePreviewsAndCheckpoints", {
        "preview_every": 0, "negative_prompt": "", "guidance": 7.0, "sampler_steps": 20, "images_per_prompt": 1,
        "checkpoint_every": 250, "validation_fraction": 0.0, "patience": 0, "preview_seed": 0, "preview_with_ema": True,
        "checkpoint_minutes": 0.0, "checkpoints_to_keep": 2, "validation_every": 50}),
}
"""Input of a Train node → its settings node and the widgets of that, with their defaults."""
TRAIN = {"base": ["demo", 3], "dataset": ["data", 0], "name": "test", "preset": "custom", "steps": 3, "learning_rate": 1e-3,
         "batch_size": 2, "resolution": 64, "preview_prompts": "", "training_seed": 0}
"""Widgets of all Train nodes."""
LORA = {"rank": 4, "alpha": 4.0, "targets": "attention", "text_encoder_learning_rate": 0.0}


def training(**widgets) -> dict:
    """Demo base + example dataset → Train LoRA ("train"); keyword arguments replace widgets of the train node, or of a
    settings node, which is connected then."""
    return training_node("FineTuneTrainLora", **{**LORA, **widgets})


def training_node(node: str, **widgets) -> dict:
    """The same with another Train node and its own widgets; those that all of them have are filled in."""
    return with_settings({
        "demo": {"class_type": "FineTuneLoadDemoBase", "inputs": {}},
        "data": {"class_type": "FineTuneLoadImageDataset", "inputs": {
            "folder": "examples/openmoji", "trigger": "", "default_caption": "", "repeats": 1}},
        "train": {"class_type": node, "inputs": dict(TRAIN)},
    }, **widgets)


def with_settings(prompt: dict, **widgets) -> dict:
    """The prompt with other widgets of its train node, and a settings node for those that stand there."""
    prompt = copy.deepcopy(prompt)
    inputs = prompt["train"]["inputs"]
    for socket, (node, defaults) in SETTINGS.items():
        chosen = {name: widgets.pop(name) for name in defaults if name in widgets}
        if chosen:
            prompt.setdefault(socket, {"class_type": node, "inputs": dict(defaults)})["inputs"].update(chosen)
            inputs[socket] = [socket, 0]
    inputs.update(widgets)
    return prompt


def dreambooth(**widgets) -> dict:
    """Demo base + example dataset, and the same as class images → Train DreamBooth ("train")."""
    return training_node("FineTuneTrainDreamBooth", **{
        "class_images": ["data", 0], "text_encoder_learning_rate": 0.0, **widgets})


def sampling(prompt: dict, model: list, clip: list, prefix: str, seeds: int = 8) -> dict:
    """Add: one image batch of a lion, drawn by the core's nodes, saved under `prefix`."""
    prompt = copy.deepcopy(prompt)
    parts = {
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": "noto emoji of a lion"}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": seeds}},
        "sample": {"class_type": "KSampler", "inputs": {
            "model": model, "positive": [f"{prefix}/positive", 0], "negative": [f"{prefix}/negative", 0],
            "latent_image": [f"{prefix}/latent", 0], "seed": 5, "steps": 12, "cfg": 4.0, "sampler_name": "dpmpp_2m",
            "scheduler": "normal", "denoise": 1.0}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": [f"{prefix}/sample", 0], "vae": ["demo", 2]}},
        "save": {"class_type": "SaveImage", "inputs": {"images": [f"{prefix}/decode", 0], "filename_prefix": prefix}},
    }
    return {**prompt, **{f"{prefix}/{name}": node for name, node in parts.items()}}


def with_lora(prompt: dict, name: str, lora_name, strength: float) -> dict:
    """Add the core's LoraLoader on the demo base; `lora_name` is a file name or a link."""
    return {**prompt, name: {"class_type": "LoraLoader", "inputs": {
        "model": ["demo", 0], "clip": ["demo", 1], "lora_name": lora_name, "strength_model": strength,
        "strength_clip": strength}}}


def random_lora(path: Path, seed: int, metadata: dict | None = None) -> Path:
    """A LoRA of the demo base's attention and text encoder by kohya's names."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for prefix, part, file in (("lora_unet_", "unet", "diffusion_pytorch_model"), ("lora_te_", "text_encoder", "model")):
        with safe_open(DEMO_BASE / part / f"{file}.safetensors", framework="pt") as weights:
            for name in weights.keys():
                if name.endswith(".weight") and (".attn" in name or "self_attn" in name):
                    out, into = weights.get_slice(name).get_shape()
                    layer = prefix + name.removesuffix(".weight").replace(".", "_")
                    tensors[f"{layer}.lora_down.weight"] = torch.randn((4, into), generator=draw) * 0.1
                    tensors[f"{layer}.lora_up.weight"] = torch.randn((out, 4), generator=draw) * 0.1
                    tensors[f"{layer}.alpha"] = torch.tensor(4.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


def reached(event, node: str = "train", words: str = "step") -> int:
    """The number in a node's text "step 3 of 400", or behind other words; 0 for all other events."""
    match = re.match(rf"{words} ?(\d+) of", event.text) if (event.kind, event.node) == ("text", node) else None
    return int(match[1]) if match else 0
