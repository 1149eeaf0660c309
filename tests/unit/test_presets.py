"""What is recommended for a base fits the base."""
from pathlib import Path

import pytest
from finetune.trainers import methods
from finetune.trainers import spec as specs
from finetune.trainers.families.presets import SMALL_PRESETS, has_goal, native_resolution, recommended, resolution_note
from finetune.trainers.families.protocol import GOALS
from finetune.trainers.families.recognition import recognize

KINDS = {part.model_fields["kind"].default: part for part in (
    specs.LoraSpec, specs.FullSpec, specs.TextualInversionSpec, specs.HypernetworkSpec, specs.PivotalSpec)}
ROOT = Path(__file__).resolve().parents[2]
DEMOS = {"sd1": ROOT / "demo_base", "sd3": ROOT / "demo_flow_base" / "demo_flow_base.safetensors"}


def released(family: str, prediction_type: str = "epsilon") -> specs.BaseModelSpec:
    return specs.BaseModelSpec(family=family, path="model.safetensors", name="model", layout="single_file",
                               prediction_type=prediction_type, fingerprint="0")


@pytest.mark.parametrize("family, prediction_type, side", [
    ("sd1", "epsilon", 512), ("sd2", "v_prediction", 768), ("sd2", "epsilon", 512), ("sdxl", "epsilon", 1024),
])
def test_released_models_are_trained_at_the_size_they_make(family, prediction_type, side):
    base = released(family, prediction_type)
    preset = recommended(base, "lora", 20)
    assert native_resolution(base) == preset.resolution == side == preset.widgets["resolution"]
    assert (preset.batch_size, preset.method["targets"], preset.steps, preset.min_snr_gamma) == (1, "attention", 1500, 5)


@pytest.mark.parametrize("family", DEMOS)
@pytest.mark.parametrize("images, batch", [(20, 16), (16, 16), (3, 3), (1, 1)])
def test_the_demo_bases_are_not_trained_as_large_models(images, batch, family):
    base = recognize(str(DEMOS[family]), "demo")
    assert base.family == family
    preset = recommended(base, "lora", images)
    steps, rate = (100, 5e-4) if family == "sd3" else (150, 2e-4)
    assert (preset.resolution, preset.batch_size, preset.method["rank"]) == (64, batch, 8)
    assert (preset.steps, preset.learning_rate) == (steps, rate)
    assert preset.method["targets"] == "all with convolutions"
    assert {recommended(base, method, images).batch_size for method in SMALL_PRESETS} == {batch}


def test_a_folder_that_states_its_size_is_trained_at_that(tiny_bases):
    """8 latents wide; their VAEs halve three times. Folders of other families state none."""
    stated = dict.fromkeys(tiny_bases, 1024) | dict.fromkeys(("sd1", "sd2", "sdxl", "sd3"), 64)
    assert {family: native_resolution(base) for family, base in tiny_bases.items()} == stated


FLOWS = [released("sd3", "flow"), released("flux", "flow")]


@pytest.mark.parametrize("method, goal", [*((method, "") for method in methods.WHERE), *(("lora", goal) for goal in GOALS)])
def test_every_method_has_values_that_are_valid_settings_with_a_source(method, goal, tiny_bases):
    for base in [*tiny_bases.values(), released("sd1"), released("sdxl"), *FLOWS]:
        preset = recommended(base, method, 4, goal=goal)
        fields, lora = dict(preset.method), {}
        if method == "pivotal":
            lora = {name: fields.pop(name) for name in ("rank", "alpha", "targets", "text_encoder_learning_rate")}
            fields |= {"embedding": specs.TextualInversionSpec(), "lora": specs.LoraSpec(**lora)}
        KINDS[method](**fields)
        specs.TrainingSpec(steps=preset.steps, batch_size=preset.batch_size, resolution=preset.resolution)
        specs.OptimizerSpec(learning_rate=preset.learning_rate, **({"name": preset.optimizer} if preset.optimizer else {}))
        assert len(preset.source) > 20


def test_goals_are_those_of_the_recipes():
    """diffusers' README for SD3: 4e-4 and rank 4 at 512 pixels; ai-toolkit's interface for FLUX.1: rank 32, 3000 steps."""
    sd3, flux = FLOWS
    quick, style = recommended(sd3, "lora", 20, goal="quick try"), recommended(flux, "lora", 20, goal="style")
    assert (quick.learning_rate, quick.method["rank"], quick.resolution, quick.batch_size) == (4e-4, 4, 512, 4)
    assert (style.learning_rate, style.method["rank"], style.resolution, style.steps) == (1e-4, 32, 1024, 3000)
    for base, goal in ((sd3, "subject"), (released("sdxl"), "style")):
        assert not has_goal(base, goal) and recommended(base, "lora", 20, goal=goal) == recommended(base, "lora", 20)
    assert not has_goal(recognize(str(DEMOS["sd1"]), "demo_base"), "style")


@pytest.mark.parametrize("base", FLOWS, ids=["sd3", "flux"])
def test_flow_models_have_presets_of_their_own(base):
    full, lora = recommended(base, "full", 9, True), recommended(base, "lora", 9)
    assert (full.optimizer, full.learning_rate, full.steps) == ("adafactor", 5e-6, 1000)
    assert (lora.optimizer, lora.min_snr_gamma, lora.learning_rate, lora.resolution) == ("", 0, 1e-4, 1024)


def test_dreambooth_trains_twice_as_long_with_class_images():
    steps = [recommended(released("sd1"), "full", 9, with_class).steps for with_class in (False, True)]
    assert steps == [400, 800] and recommended(released("sd1"), "lora", 9, True).steps == 1500


@pytest.mark.parametrize("side, fits", [(512, False), (760, False), (768, True), (1024, True), (1536, True), (1544, False)])
def test_a_resolution_that_does_not_fit_is_known(side, fits):
    note = resolution_note(released("sdxl"), side)
    assert (note == "") == fits and (fits or (f"trains at {side}" in note and "for images of 1024 pixels" in note))
