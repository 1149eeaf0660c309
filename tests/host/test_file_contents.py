"""Files hold for the pack what they hold for ComfyUI: what file_content_effects.py found."""

import pytest


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("file_content_effects")


def test_captions_become_the_same_tokens(effects):
    assert effects["token_ids"] == [], "texts whose ids differ"


def test_text_encoders_are_told_apart_alike(effects):
    assert len(effects["encoders"]) == 8
    assert {name: found for name, (theirs, found) in effects["encoders"].items() if found != [theirs]} == {}


def test_quantized_layers_are_the_same_numbers(effects):
    """Where ComfyUI is too old for them, the layers in tests/data are all that is compared (test_quantized_layers.py). Whole
    denoisers too, as their families read them."""
    for what in ("quantized", "quantized denoisers"):
        assert {layout: error for layout, error in effects[what].items()
                if error > (1e-6 if "rotated" in layout else 0)} == {}, what
    assert bool(effects["quantized"]) == (len(effects["quantized denoisers"]) == 2)
