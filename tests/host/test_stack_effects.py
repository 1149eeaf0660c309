"""Stacks on small native models: what stack_effects.py found, in a process of its own."""

import pytest


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("stack_effects")


def test_a_stack_is_the_chain_of_the_hosts_loaders(effects):
    plain = effects["plain"]
    assert plain["of the chain to the base"] > 1e-2
    assert plain["unet to the chain"] < 1e-6 and plain["offloaded weights to the chain"] < 1e-6
    assert plain["offloaded half weights to the chain"] < 2**-10  # half precision of weights up to 2
    assert plain["text to the chain"] < 2**-12  # half precision: one unit in the last place of values up to 1
    assert plain["patches per weight"] == 1 and plain["base afterwards"] == 0
    assert plain["lines"][0].endswith("model 0.8, text 0.5: 582 of 582 keys matched.")
    assert plain["lines"][2] == "  36 keys have strength 0."


def test_other_packs_unpack_three_and_find_the_files(effects):
    assert effects["plain"]["consumer"] == [[True, 0.8, 0.5], [True, -0.3, 0.0], [True, 1.5, 1.0]]
    assert effects["refusals"]["four tuples"] == [["a", 1.0, 0.5], ["b", 0.5, 0.5]]


@pytest.mark.parametrize("family, least", [("sd1", 19), ("sdxl", 10)])
def test_block_weights(effects, family, least):
    found = effects[f"{family} blocks"]
    assert found["blocks"] >= least and found["whole to the base"] > 1e-2
    assert found["strangers"] == [] and found["without effect"] == []
    assert found["sum to the whole"] < 1e-6 and found["half everywhere to strength 0.5"] < 1e-6


@pytest.mark.parametrize("kind", ["attention", "feed_forward", "convolution"])
def test_a_factor_reaches_its_own_kind_only(effects, kind):
    assert kind in effects["factors"][kind] and set(effects["factors"][kind]) <= {kind, "other"}


@pytest.mark.parametrize("maker", [
    "kohya", "LoHa", "LoKr", "LoKr full", "SaveLoRA", "DoRA, output axis", "DoRA, half strength", "DoRA, input axis",
    "full difference", "diffusers", "diffusers, rsLoRA", "diffusers, DoRA", "peft",
])
def test_files_act_as_their_maker_meant(effects, maker):
    """Largest difference to the formula or to peft's merged weights, as a fraction of the largest change."""
    assert effects["makers"][maker] < 1e-5


def test_layers_of_lycoris_act_as_in_training(effects):
    assert set(effects["lycoris"]) == {"LoHa", "LoKr", "LoKr full", "DoRA output", "DoRA input"}
    assert max(effects["lycoris"].values()) < 1e-5, effects["lycoris"]


def test_the_order_counts_where_adapters_do_not_commute(effects):
    order = effects["order"]
    assert max(order["DoRA first"], order["DoRA last"], order["DoRA between"]) < 1e-5
    assert order["difference of the orders"] > 1e-2


def test_names_that_the_host_leaves_unloaded_are_mapped(effects):
    assert [name for name, found in effects["spellings"].items() if not found] == []
    assert len(effects["spellings"]) == 10


def test_what_cannot_be_applied_is_a_sentence(effects):
    refusals = effects["refusals"]
    assert "'sdxl.safetensors' is made for Stable Diffusion XL, but the model is Stable Diffusion 1.x" in refusals["family"]
    assert "'broken.safetensors' is not a safetensors file" in refusals["broken"]
    assert "'short.safetensors' is incomplete" in refusals["short"]
    assert "is not in the loras folders" in refusals["missing"]
    assert refusals["strength 0 gives the same objects"] and refusals["empty gives the same objects"]
    assert "36 keys not loaded, because no CLIP is connected" in refusals["no clip"][1]


def test_a_file_is_read_once_and_anew_when_it_changed(effects):
    assert effects["cache"] == {"once": True, "anew": True, "kept": 1}
