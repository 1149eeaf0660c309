"""Captions that change from step to step: rates, orders, seeds, and what the caches do about it."""
from collections import Counter

import pytest
import torch
from finetune.trainers import randomness
from finetune.trainers import spec as specs
from finetune.trainers.data.captions.templates import IMAGENET_OBJECTS, IMAGENET_STYLES
from finetune.trainers.data.captions.variation import vary_caption
from finetune.trainers.data.images.buckets import fit
from finetune.trainers.errors import UserError
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.batches import Batches, BatchOrder, CachedImage, CachedView, Source
from finetune.trainers.training.run import train_run
from safetensors.torch import load_file
from support.method_rows import METHODS
from support.running import losses_of, losses_with_a_stop, nothing, training_of

DRAWS = 10_000
TAGS = ["ohwx", "red", "round", "small", "on grass", "at night"]
CAPTION = ", ".join(TAGS)


def captions_of(variation, caption=CAPTION, dropout=0.0, draws=DRAWS, seed=1) -> list[str]:
    """Captions of a run of `draws` samples in batches of four, as the loop gets them."""
    crop = fit((64, 64), [(64, 64)])
    image = CachedImage(caption, [CachedView(crop, lambda: torch.zeros((4, 8, 8)))], variation)
    batches = Batches(Source([image], BatchOrder([(64, 64)], [1], 4, seed)), 1, seed, dropout, nothing)
    return [each for step in range(draws // 4) for each in batches.load(batches.plan(step)[0]).captions]


def near(count: int, fraction: float, draws: int = DRAWS, deviations: float = 4.5) -> bool:
    """Whether a count of `draws` independent draws is within so many standard deviations of its mean."""
    return abs(count - draws * fraction) <= deviations * (draws * fraction * (1 - fraction)) ** 0.5


def chi_square(counts, expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


def test_rates_over_ten_thousand_draws():
    """Caption dropout, tag dropout, shuffle and templates together, as in a run: each at its own rate."""
    templates = ("a photo of {caption}", "{caption} in oil", "{caption}")
    variation = specs.CaptionVariationSpec(shuffle=True, keep_tags=1, tag_dropout=0.25, templates=templates)
    captions = captions_of(variation, dropout=0.1)
    present = [caption for caption in captions if caption]
    assert near(len(captions) - len(present), 0.1)
    used = Counter("photo" if caption.startswith("a photo of ") else "oil" if caption.endswith(" in oil") else "bare"
                   for caption in present)
    assert all(near(used[name], 1 / 3, len(present)) for name in ("photo", "oil", "bare"))
    lists = [caption.removeprefix("a photo of ").removesuffix(" in oil").split(", ") for caption in present]
    assert all(tags[0] == "ohwx" and len(set(tags)) == len(tags) and set(tags) <= set(TAGS) for tags in lists)
    for tag in TAGS[1:]:
        assert near(sum(tag in tags for tags in lists), 0.75, len(lists)), tag
    # Independently of each other: all five are there in 0.75 ** 5 of the captions.
    assert near(sum(len(tags) == 6 for tags in lists), 0.75**5, len(lists))


def test_every_tag_is_equally_often_at_every_place():
    captions = [caption.split(", ") for caption in captions_of(specs.CaptionVariationSpec(shuffle=True, keep_tags=2))]
    assert all(tags[:2] == TAGS[:2] and sorted(tags) == sorted(TAGS) for tags in captions)
    places = Counter((tag, tags.index(tag)) for tags in captions for tag in TAGS[2:])
    counts = [places[tag, place] for tag in TAGS[2:] for place in range(2, 6)]
    assert sum(counts) == 4 * DRAWS
    assert chi_square(counts, DRAWS / 4) < 28  # 9 degrees of freedom: a fair shuffle is below in 999 of 1000 seeds
    orders = Counter(tuple(tags[2:]) for tags in captions)
    assert len(orders) == 24 and chi_square(orders.values(), DRAWS / 24) < 50  # 23 degrees of freedom


@pytest.mark.parametrize("templates, count", [(IMAGENET_OBJECTS, 27), (IMAGENET_STYLES, 17)])
def test_every_imagenet_template_is_equally_likely(templates, count):
    assert len(set(templates)) == len(templates) == count
    counts = Counter(captions_of(specs.CaptionVariationSpec(templates=templates), caption="ohwx"))
    assert set(counts) == {template.replace("{caption}", "ohwx") for template in templates}
    assert chi_square(counts.values(), DRAWS / count) < 60  # 26 degrees of freedom: 54 in 999 of 1000 seeds


def test_captions_are_a_function_of_seed_step_and_sample():
    variation = specs.CaptionVariationSpec(shuffle=True, tag_dropout=0.2, templates=("a {caption}", "the {caption}"))
    first = captions_of(variation, draws=400)
    assert first == captions_of(variation, draws=800)[:400]
    assert first != captions_of(variation, draws=400, seed=8)
    assert len(set(first)) > 300


def test_captions_and_noise_are_drawn_apart():
    """A variation that is switched on changes neither noise nor the dropout of whole captions."""
    plain, varied = (captions_of(variation, dropout=0.3, draws=400) for variation in (
        specs.CaptionVariationSpec(), specs.CaptionVariationSpec(shuffle=True)))
    assert [not caption for caption in plain] == [not caption for caption in varied]


@pytest.mark.parametrize("caption, fields, expected", [
    (CAPTION, {}, {CAPTION}),
    ("one,two ,, three", {}, {"one,two ,, three"}),  # left alone to the letter
    ("one,two ,, three", {"tag_dropout": 1.0, "keep_tags": 2}, {"one, two"}),
    ("one, two", {"tag_dropout": 1.0}, {""}),
    ("a | b", {"shuffle": True, "separator": "|"}, {"a| b", "b| a"}),
    ("a b", {"shuffle": True, "separator": " "}, {"a b", "b a"}),
    ("a, b", {"shuffle": True, "keep_tags": 5}, {"a, b"}),
    ("", {"shuffle": True, "tag_dropout": 0.5, "templates": ("a {caption}.",)}, {"a ."}),
    ("{caption}", {"templates": ("{caption} and {caption}",)}, {"{caption} and {caption}"}),
])
def test_odd_captions(caption, fields, expected):
    variation = specs.CaptionVariationSpec(**fields)
    assert {vary_caption(caption, variation, randomness.generator(0, number)) for number in range(50)} == expected


@pytest.mark.parametrize("part, fields, words", [
    (specs.CaptionVariationSpec, {"templates": ("a photo",)}, "The template 'a photo' has no place for the caption"),
    (specs.CaptionVariationSpec, {"separator": ""}, "separator is ''"),
    (specs.CaptionVariationSpec, {"tag_dropout": 1.5}, "tag_dropout is 1.5"),
    (specs.AugmentationSpec, {"flip": True, "noise": 0.1}, "flip and noise would be frozen; set variants to 2 or more"),
    (specs.AugmentationSpec, {"variants": 3}, "Variants is 3, but nothing makes them differ"),
])
def test_what_cannot_work_is_refused(part, fields, words):
    with pytest.raises(UserError) as problem:
        specs.checked(part, **fields)
    assert words in str(problem.value)


# ---- with the caches -----------------------------------------------------------------------------------------------

def varied(dataset, caption=None, **changes):
    """The dataset with something changed in all images; their captions become tags."""
    return dataset.model_copy(update={"images": tuple(
        image.model_copy(update={"caption": caption or f"square, red, {number}, round", **changes})
        for number, image in enumerate(dataset.images))})


SHUFFLED = specs.CaptionVariationSpec(shuffle=True, keep_tags=1, tag_dropout=0.2)
ALWAYS = specs.MemorySpec(caption_cache="always")


def test_a_cache_that_would_freeze_captions_is_refused(tiny_bases, make_spec, squares):
    dataset = varied(squares, variation=SHUFFLED)
    parts = dict(make_spec(tiny_bases["sd1"]))
    for fields in ({"dataset": dataset}, {"prior": specs.PriorSpec(dataset=dataset)}):
        with pytest.raises(UserError, match="Caption_cache is always, but the captions of the dataset 'squares' change"):
            specs.checked(specs.RunSpec, **{**parts, **fields, "memory": ALWAYS})
    still = varied(squares, variation=specs.CaptionVariationSpec(keep_tags=1, templates=("a photo of {caption}",)))
    specs.checked(specs.RunSpec, **{**parts, "dataset": still, "memory": ALWAYS})
    for method in (METHODS["with text encoder"], METHODS["new word"]):
        with pytest.raises(UserError, match="caption_cache is always, but the text encoder is trained"):
            training_of(make_spec(tiny_bases["sd1"], method=method, memory=ALWAYS))


def test_what_caches_keep_is_no_other_run(tiny_bases, make_spec):
    plain, others = make_spec(tiny_bases["sd1"]), (ALWAYS, specs.MemorySpec(cache_days=3))
    assert {make_spec(tiny_bases["sd1"], memory=memory).identity for memory in others} == {plain.identity}


def test_encoded_as_they_come_equals_encoded_beforehand(tiny_bases, make_spec, squares, tmp_path):
    """The same captions give the same bits both ways: losses are equal, not nearly equal."""
    dataset, training = varied(squares, caption="square, red"), specs.TrainingSpec(steps=2, batch_size=2, resolution=64)
    known, _ = losses_of(make_spec(tiny_bases["sdxl"], name="known", dataset=dataset, training=training))
    idle = specs.CaptionVariationSpec(shuffle=True, keep_tags=2)  # both tags are kept: nothing moves
    spec = make_spec(tiny_bases["sdxl"], name="live", dataset=varied(squares, caption="square, red", variation=idle),
                     training=training,
                     folders=specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "others")))
    losses, notes = [], []

    def emit(event):
        losses.extend([event.loss] if event.event == "step" else [])
        notes.extend([event.text] if event.event == "note" else [])
        assert event.event != "encoding" or event.what == "images"

    train_run(spec, open_run(spec), emit)
    assert losses == known
    assert any("the text encoders stay in memory" in note for note in notes)
    assert any("4 of 4 captions do not vary, as there are too few tags behind those kept in front (2)" in note
               for note in notes)


@pytest.mark.parametrize("family, method", [("sdxl", "attention"), ("sd1", "new word and LoRA")])
def test_resume_equals_never_stopping_with_everything_varying(family, method, tiny_bases, make_spec, squares, tmp_path):
    dataset = varied(squares, variation=SHUFFLED.model_copy(update={"templates": IMAGENET_OBJECTS}), weight=0.5,
                     augmentation=specs.AugmentationSpec(variants=3, flip=True, crop=0.2, color=0.2, noise=0.02))
    spec = make_spec(tiny_bases[family], dataset=dataset, method=METHODS[method], training=specs.TrainingSpec(
        steps=4, batch_size=2, resolution=64, caption_dropout=0.2))
    whole, run = losses_of(spec)
    resumed, again = losses_with_a_stop(spec, 2, tmp_path / "elsewhere")
    assert resumed == whole and len(set(whole)) == 4
    [one, other] = [load_file(each.artifact) for each in (run, again)]
    assert one and all(torch.equal(value, other[name]) for name, value in one.items())


def test_validation_and_previews_see_plain_captions_and_images(tiny_bases, make_spec, squares):
    """The losses before the training do not depend on what varies."""
    def before(name, **changes):
        losses, spec = [], make_spec(
            tiny_bases["sd1"], name=name, dataset=varied(squares, **changes), validation=specs.ValidationSpec(fraction=0.5),
            training=specs.TrainingSpec(steps=1, resolution=64),
            previews=specs.PreviewSpec(prompts=("a square",), every=1, sampler_steps=1))
        train_run(spec, open_run(spec), lambda event: losses.extend(
            [event.loss] if event.event == "validation" else []))
        return losses[0]

    assert before("plain") == before("varied", variation=SHUFFLED, weight=3.0, augmentation=specs.AugmentationSpec(
        variants=4, crop=0.3, color=0.5))


def test_a_word_that_tag_dropout_leaves_out_is_named(tiny_bases, make_spec, squares):
    spec = make_spec(tiny_bases["sd1"], method=METHODS["new word"], dataset=varied(
        squares, caption="red, square", variation=SHUFFLED))
    training = training_of(spec)
    assert any("tag dropout leaves 'square' out too" in note for note in training.method.check(training.family, spec))


# ---- weights -------------------------------------------------------------------------------------------------------

def test_weights_multiply_the_loss_of_their_samples(tiny_bases, make_spec, squares):
    """The first loss is the mean over the samples' own losses, each by its weight; computed here from the batch."""
    weights = [2.0, 0.5, 0.0, 1.0]
    dataset = squares.model_copy(update={"images": tuple(
        image.model_copy(update={"weight": weight}) for image, weight in zip(squares.images, weights))})
    training = training_of(make_spec(tiny_bases["sd1"], dataset=dataset, training=specs.TrainingSpec(
        steps=1, batch_size=4, resolution=64), method=specs.LoraSpec(rank=2, alpha=2)))
    losses = []
    training.emit = lambda event: losses.append(event.loss) if event.event == "step" else None
    training.execute()
    batches = Batches(training.data.subject, 1, 0, 0.0, training.data.conditioning)
    batch = batches.load(batches.plan(0)[0])
    by_caption = {image.caption: image.weight for image in dataset.images}
    assert batch.weights.tolist() == [by_caption[caption] for caption in batch.captions]
    noised = training.objective.noise(batch.latents, batch.generators)
    # A LoRA starts as nothing, and the weights that one step has moved are switched off again.
    for parameter in training.parameters.values():
        parameter.data.zero_()
    with torch.no_grad():
        error = training.model.eval()(noised.latents, noised.timesteps, batch) - noised.target
    own = error.square().mean(dim=(1, 2, 3)).tolist()
    assert losses[0] == pytest.approx(sum(one * weight for one, weight in zip(own, batch.weights.tolist())) / 4, rel=1e-5)
    assert losses[0] != pytest.approx(sum(own) / 4, rel=1e-2)


def test_images_that_all_count_one_have_no_weights(squares):
    assert all(image.weight == 1 for image in squares.images)
    crop = fit((64, 64), [(64, 64)])
    image = CachedImage("a", [CachedView(crop, lambda: torch.zeros((4, 8, 8)))])
    batches = Batches(Source([image], BatchOrder([(64, 64)], [1], 2, 0)), 1, 0, 0.0, nothing)
    assert batches.load(batches.plan(0)[0]).weights is None
