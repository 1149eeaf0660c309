"""What the base loaders give is whole: the core's nodes take it as they take what the core's own loaders give."""
import numpy as np
import pytest
from host_server import NodeFailed
from support.core_nodes import NODES, prompt_for
from support.graphs import dreambooth, images_of, sampling

DEMO = "demo base (comes with the pack)"


def load_base(checkpoint: str) -> dict:
    return {"class_type": "FineTuneLoadBase", "inputs": {"checkpoint": checkpoint, "prediction": "auto"}}


@pytest.fixture(scope="module")
def tuned(host):
    """A checkpoint of the demo base's size and its image, with the summary that DreamBooth gives."""
    prompt = sampling(dreambooth(name="small tuned"), ["train", 0], ["train", 1], "tuned", seeds=1)
    outputs = host.run(prompt)
    return images_of(host, outputs, "tuned/save"), outputs["train"]["text"][0]


def test_core_nodes_take_the_demo_base(host):
    outputs = host.run(prompt_for({"class_type": "FineTuneLoadDemoBase", "inputs": {}}, host.object_info()))
    assert {f"{node}/show" for node in NODES if f"{node}/show" in outputs} and "TrainLoraNode/show" in outputs
    for kind, name in (("diffusion_models", "ComfyUI"), ("clip", "ComfyUI_clip_l"), ("vae", "ComfyUI_vae"),
                       ("checkpoints", "ComfyUI"), ("loras", "native")):
        assert list((host.output / kind).glob(f"{name}_*.safetensors")), f"no file in output/{kind}"


def test_core_nodes_take_a_tuned_small_checkpoint(host, tuned):
    prompt = prompt_for(load_base("small tuned.safetensors"), host.object_info())
    keep = ("base", "positive", "latent", "pair", "latents", "TrainLoraNode", "ModelMergeSimple", "CLIPSetLastLayer")
    outputs = host.run({name: node for name, node in prompt.items() if name.split("/")[0] in keep})
    assert {f"{node}/show" for node in keep[-3:]} <= outputs.keys()


def test_load_checkpoint_is_said_to_refuse_it_and_does(host, tuned):
    _, summary = tuned
    assert "small tuned.safetensors: all 662 tensors are as they should be. Load Base to Train loads it; ComfyUI's Load " \
        "Checkpoint does not, because it has no model of this size; its effect is not zero." in summary
    prompt = {"load": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "small tuned.safetensors"}},
              "words": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": ""}},
              "show": {"class_type": "PreviewAny", "inputs": {"source": ["words", 0]}}}
    with pytest.raises(NodeFailed, match="Could not detect model type"):
        host.run(prompt)


def test_load_base_draws_what_the_training_node_drew(host, tuned):
    prompt = sampling({"demo": load_base("small tuned.safetensors")}, ["demo", 0], ["demo", 1], "by name", seeds=1)
    prompt["by name/sample"]["inputs"]["latent_image"] = ["demo", 4]
    assert np.array_equal(images_of(host, host.run(prompt), "by name/save"), tuned[0])


def test_a_small_checkpoint_is_trained_on_by_its_name(host, tuned):
    prompt = dreambooth(name="small again", steps=1)
    prompt["demo"] = {"class_type": "FineTuneBaseModel", "inputs": {
        "checkpoint": "small tuned.safetensors", "prediction": "auto"}}
    prompt["train"]["inputs"]["base"] = ["demo", 0]
    outputs = host.run(prompt)
    assert "ComfyUI's own Load Checkpoint cannot load this: it has no model of this size" in outputs["demo"]["text"][0]
    assert "1 step × 2 images of 64 px on small tuned.safetensors" in outputs["train"]["text"][0]


def test_load_base_says_what_it_loaded(host):
    outputs = host.run({"base": load_base(DEMO), "show": {"class_type": "PreviewAny", "inputs": {"source": ["base", 5]}}})
    assert outputs["base"]["text"][0].startswith("Stable Diffusion 1.x, noise prediction (epsilon), diffusers folder")
    assert "made for 64 × 64 pixels" in outputs["base"]["text"][0] and outputs["show"]["text"] == ["64"]
