"""SD3 and FLUX.1 compute in ComfyUI what they compute here, with the file of every method too."""

import pytest

ROUNDING = 1e-5
"""Relative; a velocity is taken from the host's denoised latents, which costs some digits at little noise."""


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("flow_effects", unsaid="lora key not loaded")


def test_captions_are_encoded_as_the_host_does(effects):
    """Whichever text encoders there are; without a mask, and as long as the host makes them."""
    assert len(effects["text"]) == 7
    for encoders, captions in effects["text"].items():
        for title, found in captions.items():
            assert max(found["hidden"], found["pooled"]) < ROUNDING, (encoders, title, found)
        parts = ("te1" in encoders or "te2" in encoders) + ("te3" in encoders)
        shortest = 256 if encoders.startswith("flux") else 77 * parts
        assert {captions[title]["tokens"] for title in ("short", "empty", "other scripts")} == {shortest}, encoders
        assert (captions["long"]["tokens"] > shortest) == ("te3" in encoders), encoders


def test_velocities_are_the_hosts_at_every_noise_level(effects):
    """SD3.5 Medium and SD3 Medium, dev with two strengths of guidance, and schnell."""
    assert len(effects["velocity"]) == 5
    for model, errors in effects["velocity"].items():
        assert len(errors) == 5 and max(errors) < ROUNDING, (model, errors)


def test_latents_are_scaled_and_shifted_as_in_the_host(effects):
    for family in ("sd3", "flux"):
        assert max(effects["latents"][family].values()) < 1e-6, family


def test_other_autoencoders_are_the_hosts(effects):
    """Of the files that people have, FLUX.2's and Qwen-Image's; Qwen-Image-2.1's has the layers of Wan 2.2's."""
    for kind in ("flux2", "qwen"):
        found = effects["vaes"][kind]
        assert max(found["latents"], found["images"]) < 1e-4, (kind, found)
        assert min(found["spread"], found["contrast"]) > 0.05, (kind, found)
    assert effects["vaes"]["wan 2.2"]


@pytest.mark.parametrize("family, methods", [
    ("sd3", ("lora", "loha", "full", "new word")), ("flux", ("lora", "dora", "lokr", "full", "new word"))])
def test_every_methods_file_acts_in_the_host_as_in_training(family, methods, effects):
    for method in methods:
        found = effects["methods"][f"{family}: {method}"]
        assert max(found["velocity"], *found["text"].values()) < ROUNDING, (method, found)
        assert min(found["before"]["text"]["hidden"], found["before"]["text"]["pooled"]) > 1e-2, (method, found)
        if method != "new word":
            assert found["before"]["velocity"] > 1e-3, (method, found)
        if "layers" in found:
            assert found["layers"] == found["loaded"] > 50 and not found["unknown"], (method, found)


def test_checkpoints_have_the_names_of_the_base_and_of_the_host(effects):
    for family in ("sd3", "flux"):
        found = effects["methods"][f"{family}: full"]
        assert found["same names as the base"] and found["names that ComfyUI saves"], found


def test_learned_words_are_read_by_the_hosts_own_loader(effects):
    vectors = {"clip_l": [3, 32], "t5xxl": [3, 64]}
    assert effects["methods"]["flux: new word"]["vectors"] == vectors
    assert effects["methods"]["sd3: new word"]["vectors"] == {**vectors, "clip_g": [3, 32]}
