"""Base Model from Parts on a real server: the demo base as ComfyUI's loaders would have it, each part in its folder."""
import pytest
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.families.sizes import stated_sizes
from host_server import NodeFailed, PromptRejected
from safetensors.torch import load_file, save_file
from support import tiny
from support.graphs import DEMO_BASE, dreambooth, training

AUTO = "auto (find what fits)"
PARTS = {"model.diffusion_model.": "unet/demo/demo denoiser.safetensors",
         "cond_stage_model.transformer.": "clip/demo text.safetensors", "first_stage_model.": "vae/demo vae.safetensors"}


def from_parts(**widgets) -> dict:
    return {"class_type": "FineTuneBaseModelFromParts", "inputs": {
        "denoiser": "demo/demo denoiser.safetensors", "text_encoder": AUTO, "text_encoder_2": AUTO, "text_encoder_3": AUTO,
        "vae": AUTO, "prediction": "auto", **widgets}}


@pytest.fixture(scope="module")
def models(host, tmp_path_factory):
    """The folder of all models, with the three parts in the older names of their folders."""
    whole = load_file(tiny.make_single_file("sd1", DEMO_BASE, tmp_path_factory.mktemp("demo") / "demo.safetensors"))
    folder = host.base_directory / "models"
    for prefix, place in PARTS.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        save_file({name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)},
                  folder / place, stated_sizes(DEMO_BASE, "sd1"))
    (folder / "text_encoders").mkdir(exist_ok=True)
    (folder / "text_encoders" / "damaged.safetensors").write_text("this is no model")
    return folder


def test_parts_are_found_and_trained_on(host, models):
    prompt = training(name="from parts", steps=2)
    prompt["demo"] = from_parts()
    prompt["train"]["inputs"]["base"] = ["demo", 0]
    outputs = host.run(prompt)
    assert outputs["demo"]["text"][0].splitlines() == [
        "Stable Diffusion 1.x, noise prediction (epsilon), separate files",
        "CLIP-L text encoder: demo text.safetensors (fp32), found",
        "VAE with 4 latent channels: demo vae.safetensors (fp32), found"]
    assert "2 steps × 2 images of 64 px on demo/demo denoiser.safetensors" in outputs["train"]["text"][0]
    whole = training(name="from one folder", steps=2)
    lines = [text.splitlines() for text in (outputs["train"]["text"][0], host.run(whole)["train"]["text"][0])]
    losses = [[line for line in each if "loss" in line.lower()] for each in lines]
    assert losses[0] and losses[0] == losses[1]


@pytest.mark.parametrize("widgets, words", [
    ({"text_encoder": "none", "text_encoder_2": "none", "text_encoder_3": "none"},
     "lacks its CLIP-L text encoder.*models/text_encoders .*clip_l.safetensors"),
    ({"text_encoder": "damaged.safetensors"}, "'damaged.safetensors' is not a safetensors file"),
    ({"text_encoder": "../vae/demo vae.safetensors"}, "is not there|not in list"),
    ({"denoiser": "../clip/demo text.safetensors"}, "is not there|not in list"),
])
def test_what_is_wrong_is_a_sentence(host, models, widgets, words):
    with pytest.raises((NodeFailed, PromptRejected), match=words):
        host.run({"base": from_parts(**widgets), "show": {"class_type": "PreviewAny", "inputs": {"source": ["base", 1]}}})
    assert host.is_running()


FLOW_PARTS = {"model.diffusion_model.": "diffusion_models/flow denoiser.safetensors",
              "text_encoders.clip_l.transformer.": "text_encoders/flow text.safetensors",
              "first_stage_model.": "vae/flow vae.safetensors"}


def test_dreambooth_on_separate_files_ends_in_a_denoiser_that_fits_beside_them(host, models):
    file = DEMO_BASE.parent / "demo_flow_base" / "demo_flow_base.safetensors"
    whole, metadata = load_file(file), read_header(file)[1]
    for prefix, place in FLOW_PARTS.items():
        (models / place).parent.mkdir(parents=True, exist_ok=True)
        save_file({name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)},
                  models / place, metadata)
    prompt = dreambooth(name="flow parts", steps=2, learning_rate=1e-4, text_encoder_learning_rate=0.0)
    prompt["demo"] = from_parts(denoiser="flow denoiser.safetensors", text_encoder="flow text.safetensors",
                                text_encoder_2="none", text_encoder_3="none", vae="flow vae.safetensors")
    prompt["train"]["inputs"]["base"] = ["demo", 0]
    prompt["load"] = {"class_type": "UNETLoader", "inputs": {"unet_name": ["train", 4], "weight_dtype": "default"}}
    prompt["again"] = {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}}
    outputs = host.run(prompt)
    assert "flow parts.safetensors: a denoiser for Load Diffusion Model" in outputs["train"]["text"][0]
    made = host.output / "diffusion_models" / "flow parts.safetensors"
    stored = {name for name in whole if name.startswith("model.diffusion_model.")}
    assert set(read_header(made)[0]) == stored
