"""Templates of models in separate files, trained on tiny files that have the official names."""
import json
from pathlib import Path

import pytest
import workflow as workflows
from environment import ROOT
from finetune.trainers import families
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.families.sizes import stated_sizes
from safetensors.torch import save_file
from support import tiny_flow
from support.flow_models import FLOW_MODELS

TEMPLATES = {"12 Z-Image LoRA": "z_image", "13 Flux.2 klein LoRA": "flux2", "14 Qwen-Image LoRA": "qwen_image"}
NATIVE_HALF = {"UNETLoader", "CLIPLoader", "VAELoader", "LoraLoaderModelOnly", "ModelSamplingAuraFlow", "CLIPTextEncode",
               "KSampler", "VAEDecode", "ImageGrid", "ImageStitch", "SaveImage", "EmptySD3LatentImage",
               "EmptyFlux2LatentImage"}
"""ComfyUI's loaders take language models in their released sizes alone."""


@pytest.mark.parametrize("title, family", TEMPLATES.items())
def test_a_template_trains_on_its_files(host, title, family, tmp_path):
    graph = json.loads((ROOT / "example_workflows" / f"{title}.json").read_text(encoding="utf-8"))
    base = next(node for node in graph["nodes"] if node["type"] == "FineTuneBaseModelFromParts")
    offered = base["properties"]["models"]
    assert all(each["url"].startswith("https://huggingface.co/") and each["url"].endswith(f"/{each['name']}")
               for each in offered)
    write_parts(family, {each["directory"]: each["name"] for each in offered}, host.base_directory / "models", tmp_path)
    prompt = {name: node for name, node in workflows.to_prompt(graph, host.object_info()).items()
              if node["class_type"] not in NATIVE_HALF}
    train = next(name for name, node in prompt.items() if node["class_type"] == "FineTuneTrainLora")
    prompt[train]["inputs"] |= {"preset": "custom", "steps": 2, "resolution": 64, "preview_prompts": ""}
    outputs = host.run(prompt)
    shown = outputs[str(base["id"])]["text"][0]
    assert families.get(family).title in shown and all(each["name"] in shown for each in offered[1:]), shown
    name = prompt[train]["inputs"]["name"]
    assert f"2 steps × 1 image of 64 px on {offered[0]['name']}" in outputs[train]["text"][0]
    layers = read_header(host.output / "loras" / f"{name}.safetensors")[0]
    assert layers and all(layer.startswith("diffusion_model.") for layer in layers)


def write_parts(family: str, names: dict[str, str], models: Path, folder: Path):
    """A tiny model, each part in its folder of ComfyUI's; its sizes are in the files."""
    source, kind = tiny_flow.make_folder(family, folder), families.get(family)
    weights, sizes = tiny_flow.single_file_weights(family, source), stated_sizes(source, family)
    text = next(part for part in kind.text_parts.values() if names["text_encoders"] in part.files)
    weights |= {text.prefix + mark: tensor for mark, tensor in FLOW_MODELS[family].text_marks.items()}
    prefixes = {"diffusion_models": "model.diffusion_model.", "text_encoders": text.prefix, "vae": kind.vae_prefix}
    for directory, prefix in prefixes.items():
        own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        assert own, (prefix, sorted(weights)[:3])
        (models / directory).mkdir(parents=True, exist_ok=True)
        save_file(own, models / directory / names[directory], sizes)
