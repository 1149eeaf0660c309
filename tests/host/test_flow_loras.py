"""LoRAs of SD3 as kohya's trainer, ai-toolkit and OneTrainer write them inspect, stack, convert and load: what
flow_lora_effects.py found."""

import pytest


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("flow_lora_effects")


@pytest.mark.parametrize("trainer, keys", [("kohya", 12), ("ai-toolkit", 12), ("OneTrainer", 18), ("OneTrainer, older", 18)])
def test_a_file_of_a_trainer_works_everywhere(effects, trainer, keys):
    found = effects[trainer]
    assert (found["keys"], found["matched"]) == (keys, keys)
    assert len(found["layers"]) == 4 and all(name.startswith("diffusion_model.") for name in found["layers"])
    assert found["stack"] < 1e-5, "the stack's weights are not base + change"
    assert found["blocks"] < 1e-5, "weights of blocks"
    for names in ("kohya", "comfyui", "diffusers"):
        assert found[names]["unloaded"] == 0, f"keys that ComfyUI does not load, converted to {names} names"
        assert found[names]["off"] < 1e-5, names
