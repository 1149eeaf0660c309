"""Every kind of adapter acts in ComfyUI as it did in training, and the core's nodes take its file."""
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from support.graphs import sampling, training, with_lora

KINDS = ("lora", "dora", "loha", "lokr", "lokr, whole factors")
TEXT = {"sd1": ["te"], "sdxl": ["te1", "te2"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("effects")


@pytest.fixture(scope="module")
def effects(found_by, files):
    return found_by("adapter_effects", files, unsaid="ERROR lo")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", list(TEXT))
def test_the_hosts_weights_are_the_trained_layers(effects, kind, family):
    found = effects[kind][family]
    kinds = {"denoiser linear", "denoiser 1x1", "denoiser 3x3", *(f"{name} linear" for name in TEXT[family])}
    assert found["layers"].keys() == kinds
    for layer, (error, change) in found["layers"].items():
        assert error < 1e-6 and change > 1e-3, (layer, error, change)
    assert found["unmatched"] == sorted(["layer.unknown", "lora_unet_nowhere.alpha"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoising_call_of_the_host_is_the_engines(effects, kind):
    without, fp32, fp16 = (effects[kind]["demo"][name] for name in ("none", "fp32", "fp16"))
    for part in ("text", "denoised"):
        assert fp32[part] < 1e-5 and fp16[part] < 1e-3, part
        assert without[part] > 30 * fp16[part], part  # else nothing was learned that could be lost


def test_the_cores_loader_takes_every_kind(host, effects, files):
    """Strength 1 changes the image, strength 0 brings the base's back, and the server has nothing to complain about.

    One kind is trained by the node, with every control by layer; the others' files are those of the script.
    """
    loras = host.output / "loras"
    loras.mkdir(exist_ok=True)
    prompt = training(
        name="controlled", adapter="dora", targets="all with convolutions", text_encoder_learning_rate=1e-2,
        learning_rate=1e-2, convolution_rank=2, block_ranks="mid=0, up=2", block_learning_rates="down.0=0.5",
        lora_plus_ratio=2.0, rslora=True)
    names = {"controlled": ["train", 2]}
    for kind in KINDS:
        shutil.copy(files / f"{kind} fp16.safetensors", loras / f"{kind}.safetensors")
        names[kind] = f"{kind}.safetensors"
    host.object_info("LoraLoader")  # the host lists its files anew
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "plain", 1)
    for kind, name in names.items():
        for switch, strength in (("on", 1.0), ("off", 0.0)):
            prompt = with_lora(prompt, f"{kind} {switch}", name, strength)
            prompt = sampling(prompt, [f"{kind} {switch}", 0], [f"{kind} {switch}", 1], f"image {kind} {switch}", 1)
    outputs = host.run(prompt)
    plain = image_of(host, outputs, "plain")
    for kind in names:
        assert np.array_equal(plain, image_of(host, outputs, f"image {kind} off")), kind
        assert np.abs(plain - image_of(host, outputs, f"image {kind} on")).mean() > 0.005, kind
    summary = outputs["train"]["text"][0]
    assert "loads in ComfyUI with all" in summary and "its effect is not zero" in summary
    assert ("DoRA, rank 4, alpha 4, convolutions rank 2, mid rank 0, up rank 2, down.0 learning rate × 0.5, "
            "rank-stabilized, LoRA+ 2, all with convolutions") in summary
    log = host.log.read_text(encoding="utf-8", errors="replace")
    assert not re.findall(r"lora key not loaded.*|ERROR lo(?:ra|ha|kr).*", log)


def image_of(host, outputs: dict, name: str) -> np.ndarray:
    """float32 [height, width, 3] in 0…1."""
    file = host.output / outputs[f"{name}/save"]["images"][0]["filename"]
    return np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
