"""The file a run ends in: names, alpha, effect, metadata, placing."""
import hashlib
import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.adapters.lora import LoraWeight
from finetune.trainers.artifacts.lora import save_lora
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.files import place_copy
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from safetensors import safe_open


def trained(base, make_spec, **parts):
    spec = make_spec(base, **parts)
    run = open_run(spec)
    report = train_run(spec, run, silent)
    with safe_open(run.artifact, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata(), report, run


@pytest.mark.parametrize("family, denoiser_key, text_key", [
    ("sd1", "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
     "lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
    ("sd2", "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
     "lora_te_text_model_encoder_layers_1_mlp_fc1"),
    ("sdxl", "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k",
     "lora_te2_text_model_encoder_layers_1_self_attn_out_proj"),
])
def test_keys_are_those_of_kohya(family, denoiser_key, text_key, tiny_bases, make_spec):
    method = specs.LoraSpec(rank=3, alpha=1.5, text_encoder_learning_rate=1e-3)
    tensors, _, report, _ = trained(tiny_bases[family], make_spec, method=method)
    layers = {name.split(".")[0] for name in tensors}
    assert {denoiser_key, text_key} <= layers
    assert ("lora_te1_text_model_encoder_layers_0_mlp_fc2" in layers) == (family == "sdxl")
    for layer in layers:
        assert tensors[f"{layer}.alpha"].item() == 1.5 and tensors[f"{layer}.alpha"].shape == ()
        assert tensors[f"{layer}.lora_down.weight"].shape[0] == tensors[f"{layer}.lora_up.weight"].shape[1] == 3
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert report.keys == len(tensors) and report.layers == len(layers) and report.change_norm > 0


@pytest.mark.parametrize("alpha", [3.0, 1.5])
def test_under_comfyuis_names_factors_are_called_as_by_peft(alpha, tiny_bases, make_spec):
    """An alpha that is the rank goes without saying, or diffusers would refuse the file."""
    method = specs.LoraSpec(rank=3, alpha=alpha, targets="attention and feed-forward", file_precision="fp32")
    tensors, metadata, report, run = trained(tiny_bases["flux2"], make_spec, method=method)
    layers = {name.rpartition(".lora_")[0] or name.removesuffix(".alpha") for name in tensors}
    parts = ["lora_A.weight", "lora_B.weight", *(["alpha"] if alpha != 3 else [])]
    assert tensors.keys() == {f"{layer}.{part}" for layer in layers for part in parts}
    assert {"diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.single_blocks.1.linear2"} <= layers
    total = sum(layer.change().square().sum().item() for layer in read_lora(run.artifact).layers.values()) ** 0.5
    assert total == pytest.approx(report.change_norm, rel=1e-4) and metadata["modelspec.architecture"] == "flux-2/lora"
    if alpha == 3:
        theirs = Flux2KleinPipeline.lora_state_dict(str(run.artifact))
        assert "transformer.transformer_blocks.0.attn.to_k.lora_B.weight" in theirs


def test_convolutions_keep_their_shape(tiny_bases, make_spec):
    method = specs.LoraSpec(rank=2, alpha=2, targets="all with convolutions", file_precision="fp32")
    tensors, *_ = trained(tiny_bases["sd1"], make_spec, method=method)
    down = tensors["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"]
    up = tensors["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"]
    assert down.shape == (2, 64, 3, 3) and up.shape == (64, 2, 1, 1) and down.dtype == torch.float32


def test_metadata_that_managers_read(tiny_bases, make_spec, tmp_path):
    dataset_root = str(tmp_path)
    _tensors, metadata, _, run = trained(tiny_bases["sd1"], make_spec)
    assert metadata["ss_base_model_version"] == "sd_1.5" and metadata["ss_v2"] == "False"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2.0")
    assert metadata["ss_output_name"] == "run" and metadata["ss_network_module"] == "networks.lora"
    assert json.loads(metadata["ss_tag_frequency"])["squares"]["a square"] == 4
    assert json.loads(metadata["ss_datasets"])[0]["subsets"][0]["img_count"] == 4
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [64, 64], "count": 4}
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    raw = run.artifact.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little"):]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    assert dataset_root not in json.dumps(metadata) and "/tmp" not in json.dumps(metadata)


@pytest.mark.parametrize("family, version, v2", [("sd2", "sd_v2_v", "True"), ("sdxl", "sdxl_base_v1-0", "False")])
def test_base_versions(family, version, v2, tiny_bases, make_spec):
    _, metadata, *_ = trained(tiny_bases[family], make_spec)
    assert (metadata["ss_base_model_version"], metadata["ss_v2"]) == (version, v2)


def test_trigger_is_in_the_metadata(tiny_bases, make_spec, squares):
    _, metadata, *_ = trained(tiny_bases["sd1"], make_spec, dataset=squares.model_copy(update={"trigger": "ohwx"}))
    assert metadata["modelspec.trigger_phrase"] == "ohwx"
    assert json.loads(metadata["ss_datasets"])[0]["subsets"][0]["class_tokens"] == "ohwx"


def test_change_norm_is_that_of_the_product():
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn((4, 6, 3, 3), generator=generator), torch.randn((5, 4, 1, 1), generator=generator)
    change = 2.0 / 4 * up.flatten(1) @ down.flatten(1)
    assert LoraWeight("a", down, up, 2.0).change_norm() == pytest.approx(change.norm().item(), rel=1e-5)
    assert LoraWeight("a", down, torch.zeros_like(up), 2.0).change_norm() == 0


def test_values_that_do_not_fit_the_precision_are_refused(tmp_path):
    weight = LoraWeight("a", torch.full((1, 2), 1e6), torch.ones((2, 1)), 1.0)
    with pytest.raises(UserError, match="not numbers in fp16"):
        save_lora(tmp_path / "a.safetensors", [weight], "fp16", {})
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    source, other, folder = tmp_path / "new.safetensors", tmp_path / "models", tmp_path / "loras"
    source.write_bytes(b"new")
    other.mkdir()
    folder.mkdir()
    (folder / "name.safetensors").write_bytes(b"old")
    (other / "name-2.safetensors").write_bytes(b"a file of that name in another folder would be found instead")
    assert place_copy(source, folder, "name", avoid=[other]).name == "name-3.safetensors"
    assert place_copy(source, folder, "name", avoid=[other]).name == "name-3.safetensors"
    assert (folder / "name.safetensors").read_bytes() == b"old" and len(list(folder.iterdir())) == 2


def test_presets_are_within_the_limits_and_name_their_source():
    for name in families.NAMES:
        preset = families.get(name).lora_preset
        specs.LoraSpec(rank=preset.rank, alpha=preset.alpha)
        specs.OptimizerSpec(learning_rate=preset.learning_rate)
        assert preset.source and 512 <= preset.resolution <= 1024
