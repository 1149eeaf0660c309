"""How the demo flow base is trained: what the script changes in models must not change what they compute."""
import importlib
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def flow(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    torch.manual_seed(0)
    return importlib.import_module("demo_flow_training")


@pytest.fixture
def recipe(flow):
    return flow.FlowRecipe(size=32, vae_widths=(8, 8, 8, 8), vae_groups=4, layers=1, positions=8, text_width=16)


@torch.no_grad()
def test_latents_are_standardized_for_sd3s_scale_and_shift_and_decode_the_same_inside(flow, recipe):
    vae = recipe.build_vae().eval()
    vae.decoder.conv_in.padding = (0, 0)  # exact only where nothing is padded
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    before = vae.encode(images).latent_dist
    decoded = vae.decode(before.mode()).sample
    flow.standardize(vae, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
    after = vae.encode(images).latent_dist
    seen = (after.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.decode(after.mode()).sample, decoded, atol=1e-4, rtol=1e-3)
    ratio = (after.mean.std((0, 2, 3)) / before.mean.std((0, 2, 3))).view(1, -1, 1, 1)
    torch.testing.assert_close(after.std / before.std, ratio.expand_as(after.std), atol=1e-3, rtol=1e-3)


def asked(transformer, context: int, pooled: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents, text, words = (torch.randn(shape, generator=generator) for shape in ((2, 16, 4, 4), (2, 5, 16), (2, 16)))
    text, words = (torch.nn.functional.pad(each, (0, width - 16)) for each, width in ((text, context), (words, pooled)))
    with torch.no_grad():
        return transformer(latents, text, words, torch.tensor([100.0, 700.0]), return_dict=False)[0]


def test_attention_as_two_products_is_attention(flow, recipe):
    transformer = recipe.build_transformer(16, 16)
    expected = asked(transformer, 16, 16)
    transformer.set_attn_processor(flow.PlainJointAttention())
    torch.testing.assert_close(asked(transformer, 16, 16), expected, atol=1e-5, rtol=1e-4)


def test_wider_text_with_zeros_behind_it_says_the_same(flow, recipe):
    trained = recipe.build_transformer(16, 16)
    wide = flow.widened(recipe, trained.state_dict(), 40, 20)
    torch.testing.assert_close(asked(wide, 40, 20), asked(trained, 16, 16), atol=1e-5, rtol=1e-4)
    assert wide.config.sample_size == 4 and wide.config.pos_embed_max_size == 8


def test_the_transformer_begins_as_zero(flow, recipe):
    transformer = recipe.build_transformer(16, 16)
    assert asked(transformer, 16, 16).abs().max() > 0
    flow.zero_gates(transformer)
    assert not asked(transformer, 16, 16).any()
    gates = [module for name, module in transformer.named_modules() if name.endswith(".linear")]
    assert gates and not any(parameter.any() for gate in gates for parameter in gate.parameters())


def test_sigmas_are_logit_normal(flow):
    logits = flow.sample_sigmas(4096, torch.Generator().manual_seed(0)).logit()
    assert logits.mean().item() == pytest.approx(flow.SIGMA_MEAN, abs=0.01)
    assert logits.std().item() == pytest.approx(flow.SIGMA_STD, abs=0.01)


def test_what_fits_is_taken_over(flow):
    model = torch.nn.ModuleDict({"same": torch.nn.Linear(2, 2), "other": torch.nn.Linear(2, 3)})
    untouched = model["other"].weight.clone()
    flow.start_from(model, {"same.weight": torch.ones(2, 2), "other.weight": torch.ones(2, 2), "else": torch.ones(1)})
    assert torch.equal(model["same"].weight, torch.ones(2, 2)) and torch.equal(model["other"].weight, untouched)
