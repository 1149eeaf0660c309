"""Files hold for the pack what they hold for ComfyUI: what file_content_effects.py found."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from environment import describe

SCRIPT = Path(__file__).with_name("file_content_effects.py")


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    results, environment = tmp_path_factory.mktemp("contents") / "results.json", {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, str(SCRIPT), str(describe().comfyui), str(results)], env=environment,
                            capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(results.read_text(encoding="utf-8"))


def test_captions_become_the_same_tokens(effects):
    assert effects["token_ids"] == [], "texts whose ids differ"


def test_text_encoders_are_told_apart_alike(effects):
    assert len(effects["encoders"]) == 8
    assert {name: found for name, (theirs, found) in effects["encoders"].items() if found != [theirs]} == {}


def test_quantized_layers_are_the_same_numbers(effects):
    """Where ComfyUI is too old for them, the layers in tests/data are all that is compared (test_quantized_layers.py)."""
    assert {layout: error for layout, error in effects["quantized"].items()
            if error > (1e-6 if "rotated" in layout else 0)} == {}
