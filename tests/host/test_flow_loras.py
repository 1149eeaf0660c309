"""LoRAs of SD3 as kohya's trainer, ai-toolkit and OneTrainer write them inspect, stack, convert and load: what
flow_lora_effects.py found."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environment import describe

SCRIPT = Path(__file__).with_name("flow_lora_effects.py")


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow_loras")
    result = subprocess.run([sys.executable, str(SCRIPT), str(describe().comfyui), str(folder)], capture_output=True,
                            env={**os.environ, "HF_HUB_OFFLINE": "1"}, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


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
