"""Train and settings nodes inside ComfyUI: what training_nodes.py found, in a process of its own."""

import pytest

METHODS = {"FineTuneTrainLora": "lora", "FineTuneTrainDreamBooth": "full", "FineTuneTrainPivotal": "pivotal",
           "FineTuneTrainTextualInversion": "textual_inversion", "FineTuneTrainHypernetwork": "hypernetwork"}


@pytest.fixture(scope="module")
def results(found_by):
    return found_by("training_nodes")


def test_a_settings_node_with_its_defaults_changes_nothing(results):
    settings = {name for name, facts in results["facts"].items() if facts["category"] == "FineTune/settings"}
    tried = {row.split(", ")[1] for row in results["neutral"]}
    assert tried == settings and len(settings) == 6 and len(results["neutral"]) == 4 * (5 * 5 + 2)
    assert [row for row, same in results["neutral"].items() if not same] == []


def test_a_train_node_opens_with_few_widgets_and_no_setting_is_in_two_places(results):
    facts = results["facts"]
    settings = {each["outputs"][0]: each["widgets"] for each in facts.values() if each["category"] == "FineTune/settings"}
    for node in METHODS:
        everywhere = [*facts[node]["widgets"], *(widget for kind in facts[node]["sockets"].values()
                                                 for widget in settings.get(kind, ()))]
        assert len(facts[node]["open"]) <= 12 and len(everywhere) == len(set(everywhere)) > 50, node


def test_a_widget_is_like_its_field(results):
    """`Toy` in the script has one field of each kind."""
    assert results["widgets"] == {
        "switch": ["BOOLEAN", "switch", {"default": True, "tooltip": "a switch"}],
        "choice": ["COMBO", "choice", {"options": ["b", "a"], "default": "a", "tooltip": "a choice"}],
        "kind": ["COMBO", "kind", {"options": ["x", "y"], "default": "y", "tooltip": "of a registry"}],
        "count": ["INT", "count", {"default": 8, "min": 4, "max": 64, "step": 4, "tooltip": "a number"}],
        "rate": ["FLOAT", "rate", {"default": 0.5, "min": 0.1, "max": 2.0, "step": 0.01, "tooltip": "a rate"}],
        "other": ["FLOAT", "weight", {"default": 0.7, "min": -1, "max": 2.0, "step": 0.1, "tooltip": "a rate",
                                      "advanced": True, "finetune_preset": True}],
        "blocks": ["STRING", "blocks", {"default": "", "tooltip": "blocks", "multiline": True}],
    }


def test_nodes_stand_on_their_shelves_and_are_found_by_other_words(results):
    for node, facts in results["facts"].items():
        assert facts["category"] == f"FineTune/{facts['folder'].replace('_', ' ')}", node
        assert len(facts["aliases"]) >= 2 and len(set(facts["aliases"])) == len(facts["aliases"]), node


@pytest.mark.parametrize("node, method", METHODS.items())
def test_every_train_node_begins_with_what_is_recommended_for_the_base(node, method, results):
    small, large = (results["presets"][node][base] for base in ("demo_base", "large"))
    for (spec, lines), side in ((small, 64), (large, 1024)):
        assert spec["method"]["kind"] == method and spec["training"]["resolution"] == side
        assert len(lines) == 1 and lines[0].startswith("Recommended for this base and used instead of the gray widgets: ")
        assert f"steps {spec['training']['steps']}, learning rate {spec['optimizer']['learning_rate']:g}" in lines[0]
        assert f"min-SNR {spec['objective']['min_snr_gamma']:g}. Source: " in lines[0]
    assert small[0]["training"]["steps"] < large[0]["training"]["steps"]
    assert small[0]["training"]["batch_size"] == 16 and large[0]["training"]["batch_size"] == 1


def test_what_people_set_wins_over_the_preset(results):
    special = results["special"]
    assert special["no snr"] == 0 and special["debiased"]["min_snr_gamma"] == 0 and special["debiased"]["debiased"]
    prodigy = special["prodigy"]
    assert prodigy["optimizer"]["learning_rate"] == 1 == prodigy["method"]["embedding_learning_rate"]
    assert prodigy["method"]["lora"]["text_encoder_learning_rate"] == 0 and prodigy["training"]["steps"] == 1000
    without = results["presets"]["FineTuneTrainDreamBooth"]["large"][0]["training"]["steps"]
    assert special["class images"] == 800 == 2 * without


def test_settings_nodes_reach_the_run(results):
    dora, kept = results["special"]["dora"], results["special"]["kept"]
    assert dora["adapter"] == "dora" and dora["pattern"] == "attn2" and dora["targets"] == "pattern"
    assert dora["block_ranks"] == [["mid", 4]] and dora["plus_ratio"] == 4 and dora["rank"] == 8
    previews = {"prompts": ["a lion", "a cup"], "every": 7, "seed": 5, "negative": "gray"}
    assert kept["previews"] == {**kept["previews"], **previews}
    assert kept["checkpoints"]["keep"] == 9 and kept["validation"]["fraction"] == 0.2 and kept["training"]["seed"] == 3
    assert results["special"]["previews alone"]["every"] == 300, "five times in 1500 steps"


def test_flow_models_have_presets_by_method_and_goal(results):
    special = results["special"]
    full, [line] = special["flow"]["FineTuneTrainDreamBooth"]
    assert full["optimizer"]["name"] == "adafactor" and "optimizer adafactor" in line and "min-SNR" not in line
    assert special["flow"]["FineTuneTrainLora"][0]["optimizer"]["name"] == "adamw"
    assert special["own optimizer"] == "prodigy"
    quick, [line] = special["goals"]["quick try"]
    assert (quick["training"]["resolution"], quick["optimizer"]["learning_rate"]) == (512, 3e-4) and "kohya" in line
    usual, [_, note] = special["goals"]["style"]
    assert usual == results["presets"]["FineTuneTrainLora"]["large"][0]
    assert "no recipe for a style on Stable Diffusion XL" in note


def test_inputs_of_flow_models_reach_the_run(results):
    spec = results["special"]["T5"]
    assert spec["method"]["embedding"]["train_t5"] and not spec["method"]["lora"]["train_t5"]
    assert (spec["training"]["guidance"], spec["training"]["text_length"]) == (2.0, 256)


def test_memory_fits_a_base_that_is_connected(results):
    assert "connect the base of the Train node" in results["special"]["fit without a base"]
    fitted = results["special"]["fit"]
    assert fitted["swapped_blocks"] == 0 and fitted["cache_days"] == 3, "the widgets that fit_into decides are not read"


def test_a_resolution_that_does_not_fit_is_said_before_the_run(results):
    [note] = results["special"]["too small"]
    assert "for images of 1024 pixels, and this run trains at 512" in note
    assert results["special"]["fitting"] == []


def test_class_images_are_not_made_without_a_class(results):
    assert "prompt is empty; name the class" in results["special"]["no prompt"]
