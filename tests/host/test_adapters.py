"""Every kind of adapter acts in ComfyUI as it did in training, and the core's nodes take its file."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from environment import describe
from graphs import sampling, training, with_lora
from PIL import Image

SCRIPT = Path(__file__).with_name("adapter_effects.py")
TEXT = {"sd1": ["te"], "sdxl": ["te1", "te2"]}


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    """What the script found: ComfyUI's modules and those of the tests do not fit into one process."""
    environment, folder = describe(), tmp_path_factory.mktemp("effects")
    command = [environment.python, SCRIPT, environment.comfyui, folder, folder / "result.json"]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "ERROR" not in result.stderr and "not loaded: lora_unet_down" not in result.stderr, result.stderr[-3000:]
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "lokr, whole factors"])
@pytest.mark.parametrize("family", list(TEXT))
def test_the_hosts_weights_are_the_trained_layers(effects, kind, family):
    found = effects[kind][family]
    kinds = {"denoiser linear", "denoiser 1x1", "denoiser 3x3", *(f"{name} linear" for name in TEXT[family])}
    assert found["layers"].keys() == kinds
    for layer, (error, change) in found["layers"].items():
        assert error < 1e-6 and change > 1e-3, (layer, error, change)
    assert found["unmatched"] == sorted(["layer.unknown", "lora_unet_nowhere.alpha"])


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "lokr, whole factors"])
def test_a_denoising_call_of_the_host_is_the_engines(effects, kind):
    without, fp32, fp16 = (effects[kind]["demo"][name] for name in ("none", "fp32", "fp16"))
    for part in ("text", "denoised"):
        assert fp32[part] < 1e-5 and fp16[part] < 1e-3, part
        assert without[part] > 30 * fp16[part], part  # else nothing was learnt that could be lost


def test_the_cores_loader_takes_every_kind(host):
    """Strength 1 changes the picture, strength 0 brings the base's back, and the server has nothing to complain about."""
    common = dict(targets="all with convolutions", text_encoder_learning_rate=1e-2, learning_rate=1e-2, steps=4)
    kinds = {
        "dora": dict(adapter="dora", convolution_rank=2, block_ranks="mid=0, up=2", block_rates="down.0=0.5",
                     plus_ratio=2.0, rank_stabilised=True),
        "loha": dict(adapter="loha", alpha=16.0),
        "lokr": dict(adapter="lokr", kronecker_factor=4),
    }
    plain = pictures(host, sampling(training(), ["demo", 0], ["demo", 1], "plain", 1), "plain")
    for kind, widgets in kinds.items():
        prompt = training(name=kind, **common, **widgets)
        for name, strength in ((f"{kind} on", 1.0), (f"{kind} off", 0.0)):
            prompt = sampling(with_lora(prompt, name, ["train", 2], strength), [name, 0], [name, 1], f"{name} picture", 1)
        outputs = host.run(prompt)
        on, off = (pictures_of(host, outputs, f"{kind} {name} picture") for name in ("on", "off"))
        assert np.array_equal(plain, off), kind
        assert np.abs(plain - on).mean() > 0.01, kind
        summary = outputs["train"]["text"][0]
        assert "loads in ComfyUI with all" in summary and "its effect is not zero" in summary
        assert {"dora": "DoRA, rank 4, alpha 4, convolutions rank 2, mid rank 0, up rank 2, down.0 learning rate × 0.5, "
                        "rank-stabilised, LoRA+ 2, all with convolutions",
                "loha": "LoHa, rank 4, alpha 16", "lokr": "LoKr, rank 4, alpha 4"}[kind] in summary
    log = host.log.read_text(encoding="utf-8", errors="replace")
    assert "lora key not loaded" not in log and "ERROR" not in log


def pictures(host, prompt: dict, name: str) -> np.ndarray:
    del prompt["train"], prompt["data"]
    return pictures_of(host, host.run(prompt), name)


def pictures_of(host, outputs: dict, name: str) -> np.ndarray:
    """float32 [count, height, width, 3] in 0…1."""
    files = [host.output / image["filename"] for image in outputs[f"{name}/save"]["images"]]
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files])
