"""The table of layer names is ComfyUI's own, and peft's scales are peft's own: what layer_name_effects.py found."""
import re

import pytest
from support import full_flow

READ = {"z_image": ("SimpleTuner",), "anima": (), **dict.fromkeys(("krea2", "qwen_image"), ("diffusers", "SimpleTuner"))}
"""Of some families ComfyUI reads fewer of diffusers' spellings, and older versions fewer still: whoever has a LoRA with the
others converts it."""
NEW = "krea2", "anima", "flux2", "flux3", "qwen_image_21"
"""Families that not every version of ComfyUI has."""

UNTRAINED = r"distilled_guidance_layer|time_guidance_embed|_stream_modulation"
"""Layers of Chroma and FLUX.2 that no program trains; ComfyUI does not read their names of diffusers'."""
LATER = r"transformer_blocks\.\d+\.(attn\.(to_qkv_mlp_proj|to_out)|ff(_context)?\.linear_(in|out))$"
"""Names of FLUX.2 that older versions do not read."""


@pytest.fixture(scope="module")
def effects(found_by):
    return found_by("layer_name_effects")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_name_leads_where_comfyui_leads(effects, family):
    found = effects[family]
    assert found["agreed"] > 4 * found["layers"]
    assert (found["wrong"], found["unknown"]) == ([], []), "names of the table that ComfyUI reads otherwise, or not at all"
    assert found["strangers"] == [], "names that ComfyUI knows and the table does not"


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_stack_finds_every_spelling(effects, family):
    assert effects[family]["stack"] == []


@pytest.mark.parametrize("release", full_flow.RELEASES)
def test_every_name_of_a_flow_model_leads_where_comfyui_leads(effects, release):
    """In the released sizes, without weights: no key of any maker stays unmatched, neither way."""
    found, family = effects[release], full_flow.RELEASES[release][0]
    if not found:
        assert family in NEW
        return
    every = found["missing"].pop("diffusers")
    later = [name for name in every if family == "flux2" and re.search(LATER, name)]
    unknown = [name for name in every if not re.search(UNTRAINED, name) and name not in later]
    known = found["names"]["diffusers"] - (len(every) - len(unknown))
    assert len(later) in (0, {"FLUX.2 dev": 128}.get(release, 0))
    assert not unknown or (family in READ and len(unknown) == found["names"]["diffusers"]), "a part of diffusers' names"
    assert found["missing"] == {"kohya": [], "comfyui": []}, "names of the table that ComfyUI does not know"
    assert found["wrong"] == [], "names that ComfyUI reads otherwise"
    assert found["strangers"] == [], "names that ComfyUI knows and the table does not"
    assert found["stack"] == []
    assert found["checkpoint"] == [], "tensors of a file of the denoiser that ComfyUI misses or does not know"
    assert all(found["agreed"][program] >= found["layers"] for program in ("kohya", "ComfyUI"))
    of_diffusers = READ.get(family, ("diffusers", "SimpleTuner", "OneTrainer, older"))
    assert all(found["agreed"][program] >= known for program in of_diffusers)


@pytest.mark.parametrize("kind", ["lora", "rslora", "loha", "lokr", "lokr, whole factors"])
def test_scales_that_peft_keeps_beside_the_file(effects, kind):
    found = effects["peft"][kind]
    assert found["layers"] > 40 and found["stack"] < 1e-4 and found["file"] < 1e-4
