"""Bad input is a sentence at the node before training starts, and the server goes on."""
import shutil
import struct

import pytest
import torch
from host_server import NodeFailed, PromptRejected
from PIL import Image
from safetensors.torch import save_file
from support.graphs import training


def sentence(host, prompt) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as problem:
        host.run(prompt)
    assert host.is_running()
    return str(problem.value)


def with_folder(name: str) -> dict:
    prompt = training(name="refused")
    prompt["data"]["inputs"]["folder"] = name
    return prompt


def with_checkpoint(name: str) -> dict:
    prompt = training(name="refused")
    prompt["base"] = {"class_type": "FineTuneBaseModel", "inputs": {"checkpoint": name, "prediction": "auto"}}
    prompt["train"]["inputs"]["base"] = ["base", 0]
    return prompt


@pytest.fixture(scope="module")
def checkpoints(host):
    """Files that are no checkpoints, in models/checkpoints."""
    folder = host.base_directory / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.safetensors").write_text("this is no model")
    (folder / "header.safetensors").write_bytes(struct.pack("<Q", 2**50))
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, folder / "lora.safetensors")
    save_file({"some.weight": torch.zeros(1)}, folder / "other.safetensors")
    (folder / "pickle.ckpt").write_bytes(b"\x80\x04")
    return folder


@pytest.mark.parametrize("folder, words", [
    ("input/no such folder", ["not there", "not in list"]),
    ("input/../../etc", ["not there", "not in list"]),
    ("elsewhere/openmoji", ["not there", "not in list"]),
    ("", ["not there", "not in list"]),
])
def test_folders(host, folder, words):
    assert any(each in sentence(host, with_folder(folder)) for each in words)


def test_an_unknown_preset(host):
    """Newer hosts refuse it themselves."""
    said = sentence(host, training(name="no preset", preset="as in another program"))
    assert "no preset 'as in another program'" in said or "not in list" in said


def test_an_empty_folder(host):
    """It is not offered, and a workflow that names it is told why. Newer hosts refuse it themselves."""
    (host.input / "empty").mkdir()
    said = sentence(host, with_folder("input/empty"))
    assert "holds no images" in said or "not in list" in said


def test_a_corrupt_image_among_good_ones_is_skipped_and_reported(host):
    shutil.copytree(host.environment.root / "example_datasets" / "openmoji", host.input / "mixed")
    (host.input / "mixed" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    Image.new("L", (5, 5)).save(host.input / "mixed" / "tiny gray.png")
    outputs = host.run(with_folder("input/mixed"))
    report, summary = outputs["data"]["text"][0], outputs["train"]["text"][0]
    assert report.startswith("21 images of 5×5 to 128×128 pixels in input/mixed")
    assert "Skipped broken.png" in report and "1 of 21 images has no caption file" in report
    assert "skipped broken.png" in summary and "tiny gray.png the most (12.8 times)" in summary


@pytest.mark.parametrize("name, words", [
    ("text.safetensors", "not a safetensors file"), ("header.safetensors", "not a safetensors file"),
    ("lora.safetensors", "is a LoRA, not a checkpoint"), ("other.safetensors", "not a Stable Diffusion checkpoint"),
    ("pickle.ckpt", "Only .safetensors"), ("../../input/x.safetensors", "not there"), ("missing.safetensors", "not there"),
    ("diffusers/../../..", "not there"),
])
def test_checkpoints(host, checkpoints, name, words):
    said = sentence(host, with_checkpoint(name))
    assert words in said or "not in list" in said


@pytest.mark.parametrize("widgets, words", [
    ({"rank": 0}, "Value 0 smaller than min of 1"),
    ({"learning_rate": 50.0}, "Value 50.0 bigger than max of 10.0"),
    ({"learning_rate": 5.0}, "learning rate 5 is too high for adamw"),
    ({"name": "../evil"}, "cannot name a run"),
    ({"name": ""}, "name is ''"),
    ({"targets": "pattern"}, "target_pattern is empty"),
    ({"targets": "everything"}, "everything"),
    ({"block_ranks": "down: 4"}, "is no block with a number"),
    ({"block_ranks": "left=4"}, "which is no block of"),
    ({"adapter": "loha", "lora_plus_ratio": 4.0}, "LoRA+ is about the two factors"),
    ({"steps": 10**9}, "bigger than max"),
    ({"resolution": 65}, "resolution is 65"),
    ({"precision": "fp16"}, "only trains on an NVIDIA or AMD GPU"),
])
def test_widgets(host, widgets, words):
    assert words in sentence(host, training(**{"name": "refused widgets", **widgets}))
    assert not list((host.output / "loras").glob("*evil*"))


def test_prompt_list(host):
    prompt = {"list": {"class_type": "FineTunePromptList", "inputs": {"prompts": " \n", "template": "{}"}},
              "show": {"class_type": "PreviewAny", "inputs": {"source": ["list", 0]}}}
    assert "prompts is empty" in sentence(host, prompt)
    prompt["list"]["inputs"] = {"prompts": "a\n\nb", "template": "no place"}
    assert "no place {} for the prompt" in sentence(host, prompt)
