"""LoRAs under diffusers' names, in every spelling that trainers give them, become files under ComfyUI's own names, which
every version of it loads, with the same numbers: also those that it does not read as they are."""
import pytest
import torch
from finetune.trainers import families
from finetune.trainers.artifacts.layer_names import family_of_lora
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.events import silent
from finetune.trainers.spec import FolderSpec
from finetune.trainers.tools.file_tasks import TOOLS
from safetensors.torch import save_file

LAYERS = {
    "z_image": (3840, {
        "layers.0.attention.qkv": [f"layers.0.attention.to_{letter}" for letter in "qkv"],
        "layers.29.attention.out": ["layers.29.attention.to_out.0"],
        "layers.3.feed_forward.w1": ["layers.3.feed_forward.w1"],
        "context_refiner.1.attention.qkv": [f"context_refiner.1.attention.to_{letter}" for letter in "qkv"],
        "noise_refiner.0.adaLN_modulation.0": ["noise_refiner.0.adaLN_modulation.0"],
    }),
}
"""By family: the width of its stream, and native layers with diffusers' in their place."""
SPELLINGS = {
    "musubi-tuner": lambda path: f"lora_unet_{flat(path)}",  # which ComfyUI does not read
    "OneTrainer, older": lambda path: f"lora_transformer_{flat(path)}",  # nor this for Z-Image
    "SimpleTuner": lambda path: f"lycoris_{flat(path)}",
    "ai-toolkit": lambda path: f"diffusion_model.{path}", "diffusers": lambda path: f"transformer.{path}",
    "diffusers, bare": lambda path: path, "peft": lambda path: f"base_model.model.{path}",
}


def flat(path: str) -> str:
    return path.replace(".", "_")


@pytest.mark.parametrize("program", SPELLINGS)
@pytest.mark.parametrize("family", LAYERS)
def test_every_spelling_becomes_the_hosts_own(family, program, tmp_path):
    width, layers = LAYERS[families.get(family).name]
    draw, tensors, changes = torch.Generator().manual_seed(0), {}, {}
    for native, modules in layers.items():
        change = []
        for module in modules:
            down, up = torch.randn(2, width, generator=draw), torch.randn(6, 2, generator=draw)
            key = SPELLINGS[program](module)
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
            change.append(0.5 * up @ down)
        changes[f"diffusion_model.{native}"] = torch.cat(change)
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert family_of_lora({name: tuple(tensor.shape) for name, tensor in tensors.items()}, {}) == family
    spec = TOOLS["convert"].spec(name="made", lora=str(tmp_path / "theirs.safetensors"), names="comfyui", device="cpu",
                                 folders=FolderSpec(runs=str(tmp_path), caches=str(tmp_path)), file_precision="fp32")
    TOOLS["convert"].work(spec, tmp_path, silent, lambda: False)
    found = read_lora(tmp_path / "made.safetensors").layers
    assert found.keys() == changes.keys()
    for key, change in changes.items():
        torch.testing.assert_close(found[key].change(), change, rtol=1e-4, atol=1e-4)


def test_a_lora_of_another_width_is_of_another_model():
    """Lumina 2 calls its layers as Z-Image does."""
    named = {"ss_base_model_version": families.get("z_image").metadata["ss_base_model_version"]}
    for width, stated, family in ((3840, {}, "z_image"), (2304, {}, ""), (48, named, "z_image")):
        shapes = {f"diffusion_model.layers.0.attention.to_{letter}.lora_A.weight": (4, width) for letter in "qkv"}
        assert family_of_lora(shapes, stated) == family
