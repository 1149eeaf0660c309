"""Checkpoints of other sizes than the released ones say their sizes, and are bases again by their name alone."""
import json
from pathlib import Path

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.tensor_files import read_header
from finetune.trainers.errors import UserError
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.families.recognition import recognize
from finetune.trainers.families.sizes import METADATA, check_sizes, read_configs, stated_sizes, unpacked_configs
from finetune.trainers.spec.file_tasks import BakeSpec
from finetune.trainers.tools.baking import bake
from safetensors.torch import load_file, save_file
from support import tiny
from support.running import losses_of


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_trained_small_checkpoint_is_a_base_by_its_name(tiny_bases, make_spec, family):
    base = tiny_bases[family]
    spec = make_spec(base, method=specs.FullSpec(file_precision="fp32"),
                     training=specs.TrainingSpec(steps=1, batch_size=1, resolution=64))
    _, run = losses_of(spec)
    again = recognize(str(run.artifact), "run")
    assert again.configs and again.family == family
    check_sizes(run.artifact, "run", family, again.configs)
    kind, weights = families.get(family), load_file(run.artifact)
    denoiser = kind.load_denoiser(again, torch.float32)
    assert torch.equal(denoiser.conv_in.weight, weights["model.diffusion_model.input_blocks.0.0.weight"])
    assert kind.load_vae(again).config.norm_num_groups == 4 and kind.load_text(again, torch.float32)
    assert str(Path(base.path).parent) not in json.dumps(read_header(run.artifact)[1])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_released_sizes_are_not_stated(family):
    assert stated_sizes(CONFIGS / family, family) == {}


def test_paths_of_this_disk_are_not_stated(tiny_bases, tmp_path):
    folder = tiny.make_folder("sd1", tmp_path / "model")
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": "/home/somebody/model"}))
    assert "somebody" not in stated_sizes(folder, "sd1")[METADATA]


def test_a_baked_small_checkpoint_is_a_base_by_its_name(tiny_bases, tmp_path):
    base = tiny_bases["sd1"]
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": torch.ones(1, 32), f"{name}.lora_up.weight": torch.ones(32, 1),
               f"{name}.alpha": torch.tensor(1.0)}, tmp_path / "lora.safetensors")
    runs = {"runs": str(tmp_path), "caches": str(tmp_path)}
    row = {"path": str(tmp_path / "lora.safetensors"), "model": 1.0, "text": 1.0}
    for source in (base.path, str(tmp_path / "baked.safetensors")):  # of the folder, then of the file made of it
        spec = BakeSpec(name="baked" if source == base.path else "twice", base=source, loras=(row,), folders=runs)
        bake(spec, tmp_path, lambda *_, **__: None, lambda: False)
    for file in ("baked", "twice"):
        assert read_configs(Path(recognize(str(tmp_path / f"{file}.safetensors"), file).configs)) == read_configs(
            Path(base.path))


@pytest.mark.parametrize("text", [
    "", "not json", "[]", "{}", json.dumps({"unet": 1}), "[" * 50_000, "x" * 200_000,
    json.dumps({name: {} for name in ("unet", "vae", "text_encoder", "scheduler")}),
    json.dumps({**{name: {} for name in ("vae", "text_encoder", "scheduler")}, "unet": {}, "../../evil": {}}),
])
def test_other_metadata_of_that_name_is_passed_over(text):
    assert unpacked_configs({METADATA: text}) == ""


def test_sizes_that_are_no_sizes_are_passed_over(tiny_bases):
    configs = read_configs(Path(tiny_bases["sd1"].path))
    for wrong in ("64", [], [64] * 100, [1 << 40], -1, None, {"a": 1}, [True]):
        text = json.dumps({**configs, "unet": {**configs["unet"], "block_out_channels": wrong}})
        assert unpacked_configs({METADATA: text}) == ""


def test_stated_sizes_that_are_not_those_of_the_tensors_are_refused(tiny_bases, tmp_path):
    configs = read_configs(Path(tiny_bases["sd1"].path))
    path = tiny.make_single_file("sd1", tiny_bases["sd1"].path, tmp_path / "model.safetensors")
    for part, field, value, words in (
        ("unet", "block_out_channels", [64, 64], "width of its UNet is 32, not 64"),
        ("unet", "layers_per_block", 3, "number of input blocks of its UNet is 4, not 8"),
        ("unet", "cross_attention_dim", 8, "width of the text that its UNet sees is 32, not 8"),
        ("vae", "block_out_channels", [16, 16], "width of its VAE is 8, not 16"),
        ("text_encoder", "hidden_size", 64, "width of its text encoder is 32, not 64"),
    ):
        wrong = json.dumps({**configs, part: {**configs[part], field: value}})
        with pytest.raises(UserError, match=words):
            check_sizes(path, "model", "sd1", unpacked_configs({METADATA: wrong}))


def test_unpacked_configs_that_were_changed_are_written_anew(tiny_bases):
    stated = stated_sizes(Path(tiny_bases["sd1"].path), "sd1")
    folder = Path(unpacked_configs(stated))
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "vae" / "config.json").unlink()
    assert read_configs(Path(unpacked_configs(stated))) == read_configs(Path(tiny_bases["sd1"].path))
