"""Denoisers compute in ComfyUI what they compute here: what denoiser_effects.py found."""
import pytest

ROUNDING = 1e-4
"""Relative; a velocity is taken from the host's denoised latents, which costs some digits at little noise."""


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("denoiser_effects")


def test_velocities_are_the_hosts_at_every_noise_level(effects):
    """For a short and for a long caption, and with the file of a LoRA, of which no key stays unloaded."""
    assert {"z_image", "qwen_image", "chroma", "flux2", "flux2, dev"} <= effects.keys()
    for family, errors in effects.items():
        assert len(errors) == 20 and max(errors) < ROUNDING, (family, errors)
