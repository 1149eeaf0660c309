"""The demo flow base in a real ComfyUI: it is drawn with, trained on, and its files load there."""
import numpy as np
import pytest
from support.core_nodes import SUPPLIES, prompt_for
from support.graphs import dreambooth, images_of, sampling, training, with_lora

FLOW = {"class_type": "FineTuneLoadDemoBase", "inputs": {"model": "flow (Stable Diffusion 3)"}}


@pytest.fixture(scope="module")
def drawn(host):
    """A lion by the flow base."""
    return images_of(host, host.run(sampling({"demo": FLOW}, ["demo", 0], ["demo", 1], "flow", seeds=1)), "flow/save")


def test_it_draws_a_figure_on_white(drawn):
    image = drawn[0]
    assert image.shape == (64, 64, 3)
    assert image[:3, :3].min() > 0.85 and image[20:44, 20:44].mean() < 0.8


def test_load_base_draws_the_same_and_says_what_it_loaded(host, drawn):
    load = {"class_type": "FineTuneLoadBase", "inputs": {
        "checkpoint": "demo flow base (comes with the pack)", "prediction": "auto"}}
    prompt = sampling({"demo": load}, ["demo", 0], ["demo", 1], "by name", seeds=1)
    prompt["by name/sample"]["inputs"]["latent_image"] = ["demo", 4]
    outputs = host.run(prompt)
    assert np.array_equal(images_of(host, outputs, "by name/save"), drawn)
    text = outputs["demo"]["text"][0]
    assert text.startswith("Stable Diffusion 3, rectified flow, single file, made for 64 × 64 pixels")


def test_core_nodes_take_it(host):
    taking = ["ModelMergeSimple", "CLIPMergeSimple", "KSamplerAdvanced", "SamplerCustomAdvanced", "VAEEncode",
              "VAEDecodeTiled", "ModelSave", "CLIPSave", "VAESave", "CheckpointSave", "LoraSave"]
    nodes = host.object_info()
    # Before it had this mode, ComfyUI's trainer stopped at SD3.5's norms of q and k, whose weights it loads as tensors that
    # nothing can be trained through, in every file of such a model.
    taking += ["TrainLoraNode"] if "bypass_mode" in nodes["TrainLoraNode"]["input"]["required"] else []
    prompt = prompt_for(FLOW, nodes)
    prompt["latent"]["class_type"] = prompt["pair"]["class_type"] = "EmptySD3LatentImage"  # 16 channels, for what decodes it
    outputs = host.run({name: node for name, node in prompt.items() if name.split("/")[0] in {"base", *SUPPLIES, *taking}})
    assert {f"{node}/show" for node in taking if f"{node}/show" in prompt} <= outputs.keys()


def test_core_loaders_apply_a_lora_and_strength_zero_restores_the_base(host, log, drawn):
    # A high rate for a visible effect after few steps; the text encoder too, for all kinds of keys.
    prompt = training(name="on flow", learning_rate=1e-2, text_encoder_learning_rate=1e-2, targets="all with convolutions")
    prompt["demo"] = FLOW
    prompt = with_lora(with_lora(prompt, "on", ["train", 2], 1.0), "off", ["train", 2], 0.0)
    prompt = sampling(sampling(prompt, ["on", 0], ["on", 1], "on", seeds=1), ["off", 0], ["off", 1], "off", seeds=1)
    outputs = host.run(prompt)
    on, off = (images_of(host, outputs, f"{name}/save") for name in ("on", "off"))
    assert np.array_equal(off, drawn)
    assert np.abs(on - off).mean() > 0.01
    assert outputs["train"]["lora"] == ["on flow.safetensors"]
    assert "lora key not loaded" not in log()


def test_a_tuned_checkpoint_is_loaded_by_its_name(host, drawn):
    prompt = dreambooth(name="flow tuned", steps=3, learning_rate=1e-3, text_encoder_learning_rate=1e-3)
    prompt["demo"] = FLOW
    outputs = host.run(sampling(prompt, ["train", 0], ["train", 1], "tuned", seeds=1))
    tuned = images_of(host, outputs, "tuned/save")
    assert np.abs(tuned - drawn).mean() > 0.01
    assert "flow tuned.safetensors: all 339 tensors are as they should be. Load Base to Train loads it" in \
        outputs["train"]["text"][0]
    load = {"class_type": "FineTuneLoadBase", "inputs": {"checkpoint": "flow tuned.safetensors", "prediction": "auto"}}
    again = sampling({"demo": load}, ["demo", 0], ["demo", 1], "again", seeds=1)
    assert np.array_equal(images_of(host, host.run(again), "again/save"), tuned)
