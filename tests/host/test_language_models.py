"""Language models say here what they say in ComfyUI: what language_effects.py found."""
import json
import subprocess
from pathlib import Path

import pytest
from environment import describe

SCRIPT = Path(__file__).with_name("language_effects.py")
ROUNDING = 1e-4
OLDEST = {"z_image", "qwen_image"}
ALL = OLDEST | {"flux2_klein", "flux2_dev", "krea2", "qwen_image_21", "anima"}


@pytest.fixture(scope="module")
def effects(tmp_path_factory):
    environment, files = describe(), tmp_path_factory.mktemp("language")
    command = [environment.python, SCRIPT, environment.comfyui, files, files / "result.json"]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads((files / "result.json").read_text(encoding="utf-8"))


def test_captions_are_encoded_as_the_host_does(effects):
    """Whatever language a caption is in and however long it is: as many tokens, no mask, the same states."""
    assert set(effects) in (OLDEST, ALL)
    for model, captions in effects.items():
        assert len(captions) == 5
        for title, found in captions.items():
            ours, theirs = found["tokens"]
            assert ours == theirs and not found["masks"] and found["cosine"] > 0.9999, (model, title, found)
            assert found["distance"] < ROUNDING, (model, title, found)


def test_padding_is_as_long_as_the_host_makes_it(effects):
    for model in {"flux2_klein", "flux2_dev"} & set(effects):
        tokens = {title: found["tokens"][0] for title, found in effects[model].items()}
        assert tokens.pop("long") > 512 and set(tokens.values()) == {512}


def test_another_template_would_be_noticed(effects):
    for model, captions in effects.items():
        for title, found in captions.items():
            assert found["broken"] > 0.01, (model, title, found)
