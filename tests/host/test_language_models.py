"""Language models say here what they say in ComfyUI: what language_effects.py found."""

import pytest

ROUNDING = 1e-4
OLDEST = {"chroma", "z_image", "qwen_image"}
ALL = OLDEST | {"flux2_klein", "flux2_dev", "krea2", "qwen_image_21", "anima"}


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("language_effects")


def test_captions_are_encoded_as_the_host_does(effects):
    """Whatever language a caption is in and however long it is: as many tokens, no mask, the same states."""
    assert set(effects) in (OLDEST, ALL)
    for model, captions in effects.items():
        assert len(captions) == 5
        for title, found in captions.items():
            ours, theirs = found["tokens"]
            assert ours == theirs and not found["masks"] and found["distance"] < ROUNDING, (model, title, found)
            assert found.get("cosine", 1) > 0.9999, (model, title, found)


def test_padding_is_as_long_as_the_host_makes_it(effects):
    for model in {"flux2_klein", "flux2_dev"} & set(effects):
        tokens = {title: found["tokens"][0] for title, found in effects[model].items()}
        assert tokens.pop("long") > 512 and set(tokens.values()) == {512}


def test_another_template_would_be_noticed(effects):
    for model in set(effects) - {"chroma"}:
        for title, found in effects[model].items():
            assert found["broken"] > 0.01, (model, title, found)
