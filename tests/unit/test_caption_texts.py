"""Captions out of texts: where new text goes, and what names of files say."""
import pytest
from finetune.trainers.captioning.articles import article
from finetune.trainers.captioning.texts import MODES, fill, from_names, listing, merged, own_words, words_of
from finetune.trainers.errors import UserError
from finetune.trainers.spec import DatasetImage, DatasetSpec


def dataset(*captions: str, trigger: str = "", names=()) -> DatasetSpec:
    names = names or [f"{number}.png" for number in range(len(captions))]
    return DatasetSpec(name="data", trigger=trigger, notes=("a note",), images=tuple(
        DatasetImage(path=f"/data/10_red hats/{name}", name=name, caption=caption, size=(64, 64), digest=f"{number:064}")
        for number, (name, caption) in enumerate(zip(names, captions, strict=True))))


@pytest.mark.parametrize("mode, old, trigger, caption", [
    ("replace", "a cat", "", "a dog"), ("replace", "", "", "a dog"), ("replace", "ohwx, a cat", "ohwx", "ohwx, a dog"),
    ("in front", "a cat", "", "a dog, a cat"), ("in front", "", "", "a dog"),
    ("in front", "ohwx, a cat", "ohwx", "ohwx, a dog, a cat"), ("in front", "ohwx", "ohwx", "ohwx, a dog"),
    ("in front", "a photo of ohwx cat", "ohwx", "a dog, a photo of ohwx cat"),
    ("behind", "a cat", "", "a cat, a dog"), ("behind", "", "", "a dog"), ("behind", "a cat. ", "", "a cat, a dog"),
    ("behind", "ohwx, a cat", "ohwx", "ohwx, a cat, a dog"), ("behind", "ohwx", "ohwx", "ohwx, a dog"),
    ("only missing", "", "", "a dog"), ("only missing", "ohwx", "ohwx", "ohwx, a dog"),
    ("only missing", "a cat", "", "a cat"), ("only missing", "ohwx, a cat", "ohwx", "ohwx, a cat"),
])
def test_where_a_new_text_goes(mode, old, trigger, caption):
    before = dataset(old, trigger=trigger)
    after, _ = from_names(before, " a  dog\n", mode)
    assert [image.caption for image in after.images] == [caption]
    assert after.model_copy(update={"images": before.images}) == before  # nothing else changes
    assert [image.caption for image in before.images] == [old]


def test_no_text_leaves_the_other_caption_alone():
    assert merged("a cat", "", "behind", "") == merged("a cat", " ", "in front", "") == "a cat"
    assert merged("ohwx, a cat", "", "replace", "ohwx") == "ohwx"


def test_an_unknown_mode_is_a_sentence():
    with pytest.raises(UserError, match="mode is 'above'. Choose one of: replace, only missing, in front, behind"):
        from_names(dataset("a"), "b", "above")
    assert MODES == ("replace", "only missing", "in front", "behind")


@pytest.mark.parametrize("caption, trigger, words", [
    ("ohwx, a cat", "ohwx", "a cat"), ("OHWX a cat", "ohwx", "a cat"), ("ohwx", "ohwx", ""), ("", "ohwx", ""),
    ("ohwxy cat", "ohwx", "ohwxy cat"), ("a cat", "ohwx", "a cat"), ("a cat", "", "a cat"),
])
def test_a_trigger_alone_is_no_caption(caption, trigger, words):
    assert own_words(caption, trigger) == words


AN = """airplane apple old-hat hour honest-man heirloom X-ray x-ray SUV LED HTML RV MRI F-16 8-ball 8 80 11 18-wheeler 11,000
unidentified uninvited urban usher utter Umbrella AIRPLANE orange-cat M&M ear éclair"""
A = """cat unicorn uniform union universe European ewe one-eyed once useful user utensil utility uranium ukulele hat horse
hotel yellow FROG HAT 1girl 1 100 110 180 118 U-turn UK NASA LEGO TV Toyota crème"""


@pytest.mark.parametrize("words, expected", [*((each, "an") for each in AN.split()), *((each, "a") for each in A.split()),
                                             ("猫", None), ("", None), ("-", None)])
def test_articles_follow_the_sound(words, expected):
    assert article(words) == expected


@pytest.mark.parametrize("template, name, caption", [
    ("a photo of a {name}", "airplane.png", "a photo of an airplane"), ("A {name}.", "owl_2.png", "An owl."),
    ("an {name}, a {trigger} {name}", "cat.png", "a cat, a ohwx cat"), ("a {trigger}", "cat.png", "a ohwx"),
    ("una {name}", "orange.png", "una orange"), ("banana {name}", "owl.png", "banana owl"), ("a {name}", "猫.png", "a 猫"),
    ("an {name}", "猫.png", "an 猫"), ("a {name} and a {name}", "unicorn.png", "a unicorn and a unicorn"),
    ("a {name}", "old\ufffdowl.png", "an old owl"),
])
def test_templates_write_the_article_that_fits(template, name, caption):
    [image] = dataset("", names=[name]).images
    assert fill(template, image, 1, "ohwx") == caption


@pytest.mark.parametrize("name, words", [
    ("red_hat", "red hat"), ("red_hat_01", "red hat"), ("red hat (2)", "red hat"), ("red hat-003", "red hat"),
    ("001_red_hat", "red hat"), ("10_red hats", "red hats"), ("12. red hat #3", "red hat"), ("red-hat", "red hat"),
    ("a red-haired girl", "a red-haired girl"), ("red+hat%20on+table", "red hat on table"), ("IMG_1234", ""),
    ("DSC00012", ""), ("PXL_20240102_123456", ""), ("2024-01-02 12.30.15", ""), ("00012", ""), ("cat (3) - copy", "cat"),
    ("image of a dog 2", "image of a dog"), ("3d render", "3d render"), ("3d_render_7", "3d render"),
    ("日本_犬_2", "日本 犬"),
    ("screenshot", ""), ("1girl_smiling", "1girl smiling"), ("__", ""),
])
def test_names_are_cleaned(name, words):
    assert words_of(name) == words


@pytest.mark.parametrize("template, text", [
    ("a photo of {name}", "a photo of small cat"), ("{folder}: {name}", "red hats: small cat"),
    ("{trigger}, {caption}", "ohwx, it sits"), ("{index}. {caption}", "7. it sits"), ("  a\n {name} ,  x", "a small cat, x"),
    ("plain words", "plain words"), ("{name}, {name}", "small cat, small cat"),
])
def test_templates(template, text):
    image = dataset("ohwx, it sits", names=["small_cat_2.png"]).images[0]
    assert fill(template, image, 7, "ohwx") == text


def test_empty_fields_leave_no_commas_behind():
    image = dataset("", names=["IMG_1.png"]).images[0]
    assert fill("{name}, {caption}, a hat, {trigger}", image, 1, "") == "a hat"


@pytest.mark.parametrize("template", ["{title}", "{}", "{name.__class__}", "{0}", "{name!r}"])
def test_unknown_fields_are_sentences(template):
    with pytest.raises(UserError, match=r"There are: \{name\}, \{folder\}, \{index\}, \{trigger\}, \{caption\}"):
        from_names(dataset("a"), template, "replace")


def test_an_empty_template_is_a_sentence():
    with pytest.raises(UserError, match="template is empty"):
        from_names(dataset("a"), " \n", "replace")


def test_names_without_words_are_noted():
    changed, notes = from_names(dataset("", "", "x", names=["IMG_1.png", "cat.png", "5.png"]), "a {name}", "only missing")
    assert [image.caption for image in changed.images] == ["a", "a cat", "x"]
    assert notes == ["1 of 2 file names hold no words, for example IMG_1.png; {name} is empty there"]
    assert from_names(dataset("", names=["IMG_1.png"]), "a {folder}", "replace")[1] == []


def test_the_listing_has_a_line_an_image():
    assert listing(dataset("a cat", "")) == "0.png: a cat\n1.png: "
