"""What is recommended for a base fits the base."""
from pathlib import Path

import pytest
from finetune.trainers import spec as specs
from finetune.trainers.families.presets import native_resolution, recommended
from finetune.trainers.families.recognition import recognize

DEMO = Path(__file__).resolve().parents[2] / "demo_base"


def released(family: str, objective: str = "epsilon") -> specs.BaseModelSpec:
    return specs.BaseModelSpec(family=family, path="model.safetensors", name="model", layout="single_file",
                               objective=objective, fingerprint="0")


@pytest.mark.parametrize("family, objective, side", [
    ("sd1", "epsilon", 512), ("sd2", "v_prediction", 768), ("sd2", "epsilon", 512), ("sdxl", "epsilon", 1024),
])
def test_released_models_are_trained_at_the_size_they_draw(family, objective, side):
    base = released(family, objective)
    recipe = recommended(base, 20)
    assert native_resolution(base) == recipe.resolution == side
    assert (recipe.batch_size, recipe.targets, recipe.steps) == (1, "attention", 1500)
    assert 0 < recipe.preview_every < recipe.steps / 3


@pytest.mark.parametrize("images, batch", [(20, 16), (16, 16), (3, 3), (1, 1)])
def test_the_demo_base_is_not_trained_as_a_large_model(images, batch):
    recipe = recommended(recognize(str(DEMO), "demo_base"), images)
    assert (recipe.resolution, recipe.batch_size, recipe.steps, recipe.rank) == (64, batch, 150, 8)
    assert recipe.targets == "all with convolutions" and recipe.preview_every == 50


def test_a_folder_that_states_its_size_is_trained_at_that(tiny_bases):
    """8 latents wide; their VAEs halve three times."""
    assert {family: native_resolution(base) for family, base in tiny_bases.items()} == dict.fromkeys(tiny_bases, 64)


def test_recommendations_are_valid_settings(tiny_bases):
    for base in [*tiny_bases.values(), released("sd1"), released("sdxl")]:
        recipe = recommended(base, 4)
        specs.LoraSpec(rank=recipe.rank, alpha=recipe.alpha, targets=recipe.targets)
        specs.TrainingSpec(steps=recipe.steps, batch_size=recipe.batch_size, resolution=recipe.resolution)
        specs.OptimizerSpec(learning_rate=recipe.learning_rate)
