"""What the host would load, as host_detection.py found it in a process of its own."""

import pytest


@pytest.fixture(scope="module")
def found(found_by):
    return found_by("host_detection")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_released_sizes_load(found, family):
    assert found[family]["refusal"] == "" and found[family]["unmatched"] == []


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_missing_tensor_is_named(found, family):
    assert found[f"{family} lacking"]["unmatched"] == ["VAE: decoder.conv_in.bias is missing"]


def test_what_the_base_lacked_already_is_no_fault(found):
    assert found["lacking as its base"]["unmatched"] == []


@pytest.mark.parametrize("name, refusal, error", [
    ("demo", "it has no model of this size", "Could not detect model type"),
    ("small VAE", "it has no model of this size (VAE)", "size mismatch for encoder.conv_in.weight"),
    ("small text", "it has no model of this size (text encoder)", "size mismatch"),
])
def test_what_load_checkpoint_refuses_is_known_before(found, name, refusal, error):
    assert found[name]["refusal"] == refusal and error in found[name]["loaded"]


def test_a_checkpoint_without_a_text_encoder(found):
    assert found["without text"]["refusal"] == "it finds no text encoder in it"


def test_small_checkpoints_are_compared_with_what_the_pack_builds(found):
    assert found["demo"]["unmatched"] == [] and found["demo lacking"]["unmatched"] == ["UNet: out.2.bias is missing"]


def test_a_small_diffusers_folder_is_refused_too(found):
    assert found["demo folder"]["refusal"] == "it has no model of this size"


def test_a_lora_is_put_on_the_hosts_weights(found):
    assert found["lora"]["whole"] == [] and found["lora"]["strange"] == ["lora_unet_nowhere.alpha"]
    for wide, layer in zip(found["lora"]["wide"], ("attn1_to_k", "self_attn_k_proj"), strict=True):
        assert len(wide) == 3 and all(f"{layer}." in key for key in wide)


def test_a_hypernetwork_acts(found):
    assert found["hypernetwork"] == {
        "whole": [], "torn": ["width 8"], "narrow": ["width 8"], "of another width": ["width 16"]}
