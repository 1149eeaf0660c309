"""The parts of `scripts/` that make the demo base and the sample images, without network or training."""
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def emoji_images(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("emoji_images")


@pytest.fixture
def training(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("demo_base_training")


def test_caption_chances_add_up_and_every_form_is_filled(emoji_images):
    chances = [chance for chance, _ in emoji_images.CAPTION_TEMPLATES]
    assert sum(chances) == pytest.approx(1)
    assert emoji_images.captions("twemoji", "red apple", "fruit") == [
        "twemoji of a red apple", "twemoji of a red apple, fruit", "a twemoji, red apple", "red apple, twemoji",
        "twemoji of a fruit", ""]


@pytest.mark.parametrize("label, name", [
    ("dog face", "dog face"),
    ("Mrs. Claus", "mrs. claus"),
    ("woman’s hat", "woman's hat"),
    ("  face:  smiling,  big “eyes” ", "face smiling big eyes"),
    ("piñata", "piata"),
])
def test_names_are_what_people_type(emoji_images, label, name):
    assert emoji_images.clean_name(label) == name


def test_core_names_follow_name_or_category(emoji_images):
    assert emoji_images.is_core("dog face", "animal")
    assert emoji_images.is_core("kiwi fruit", "fruit")
    assert not emoji_images.is_core("trolleybus", "vehicle")


def test_sample_subjects_are_distinct_and_held_out_ones_stay_out(emoji_images):
    trained, held_out = set(emoji_images.SAMPLE_NAMES), set(emoji_images.HELD_OUT_NAMES)
    assert len(trained) == len(held_out) == 20
    assert not trained & held_out


@pytest.mark.parametrize("stored", ["2764-fe0f.png", "2764.png", "2764-FE0F.svg"])
def test_images_are_found_with_and_without_the_presentation_selector(emoji_images, stored):
    assert emoji_images.find_image({stored: b"content"}, "2764-FE0F") == (stored, b"content")


def test_crop_is_a_centered_square_around_the_glyph(emoji_images):
    image = Image.new("RGBA", (100, 100))
    ImageDraw.Draw(image).rectangle((30, 10, 49, 49), fill="red")  # 20 wide, 40 high
    cropped = emoji_images.crop_to_glyph(image, margin=1.05)
    assert cropped.size == (42, 42)
    assert cropped.getchannel("A").getbbox() == (11, 1, 31, 41)


def test_transparent_becomes_white(emoji_images):
    assert emoji_images.on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_images_survive_saving(emoji_images, tmp_path):
    images = emoji_images.EmojiImages(
        pixels=np.zeros((2, 4, 4, 3), np.uint8), alpha=np.ones((2, 4, 4), np.uint8),
        styles=np.array(["noto emoji", "twemoji"]), names=np.array(["fox", "fox"]), categories=np.array(["animal"] * 2))
    images.save(tmp_path / "images.npz")
    loaded = emoji_images.EmojiImages.load(tmp_path / "images.npz")
    assert len(loaded) == 2 and loaded.pixels.shape == (2, 4, 4, 3)
    assert loaded.indices(emoji_images.TWEMOJI, ("fox",)) == [1]


def test_schedule_warms_up_holds_and_decays_to_two_percent(training):
    schedule = training.Schedule(peak=1.0, warmup_steps=10, held=0.5)
    assert schedule.rate(0, 0.0) == pytest.approx(0.1)
    assert schedule.rate(10, 0.5) == pytest.approx(1.0)
    assert schedule.rate(10, 0.75) == pytest.approx(0.51)
    assert schedule.rate(10, 1.0) == pytest.approx(0.02)


def test_timesteps_take_one_from_each_part(training):
    numbers = training.spread(50, torch.Generator().manual_seed(0))
    assert (numbers.sort().values * 50).long().tolist() == list(range(50))


def test_augmentation_keeps_range_and_white_corners(training):
    generator = torch.Generator().manual_seed(0)
    images, alpha = torch.ones(64, 3, 16, 16), torch.zeros(64, 1, 16, 16)
    images[:, 0, 6:10, 6:10], alpha[:, :, 6:10, 6:10] = -1, 1
    augmented = training.augment(images, alpha, generator)
    assert augmented.shape == images.shape
    assert augmented.min() >= -1.001 and augmented.max() <= 1.001
    assert torch.equal(augmented[:, :, 0, 0], torch.ones(64, 3))
    assert (augmented != images).flatten(1).any(1).float().mean() > 0.5


def test_standardized_latents_have_mean_0_and_deviation_1_and_decode_the_same(training):
    torch.manual_seed(0)
    vae = training.Recipe(size=32, vae_widths=(8, 8, 8, 8), vae_groups=4).build_vae().eval()
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        decoded = vae.decode(before.mode()).sample
        training.standardize_latents(vae, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
        after = vae.encode(images).latent_dist
        scaled = after.mode() * vae.config.scaling_factor
        decoded_after = vae.decode(after.mode()).sample
    assert vae.config.scaling_factor == 0.18215
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(decoded_after, decoded, atol=1e-4, rtol=1e-3)
    ratio = (after.mean.std((0, 2, 3)) / before.mean.std((0, 2, 3))).view(1, -1, 1, 1)
    torch.testing.assert_close(after.std / before.std, ratio.expand_as(after.std), atol=1e-3, rtol=1e-3)


def test_full_vocabulary_keeps_what_was_learned(training):
    recipe = training.Recipe(text_width=8, text_layers=1)
    used = torch.tensor([5, 17, 49406, 49407])
    compact = recipe.build_text_encoder(len(used)).eval()
    full = training.with_full_vocabulary(recipe, compact, used).eval()
    short = torch.tensor([[2, 0, 1, 3]])
    with torch.no_grad():
        torch.testing.assert_close(full(input_ids=used[short]).last_hidden_state, compact(input_ids=short).last_hidden_state)
