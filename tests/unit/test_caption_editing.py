"""What the caption nodes make of captions, rule by rule."""
import time

import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.captions import text_replacement
from finetune.trainers.data.captions.caption_editing import (
    TagEdit,
    caption_lines,
    describe_changes,
    edit_by_hand,
    edit_tags,
    place_trigger,
    tag_list,
)
from finetune.trainers.data.captions.text_replacement import SECONDS, Replacement, replace_in_captions
from finetune.trainers.errors import UserError


def dataset(*captions, trigger="", names=None):
    names = names or [f"{number}.png" for number in range(len(captions))]
    return specs.DatasetSpec(name="d", trigger=trigger, notes=("kept",), images=tuple(
        specs.DatasetImage(path=f"/d/{name}", name=name, caption=caption, size=(8, 8), digest=str(number), repeats=3)
        for number, (name, caption) in enumerate(zip(names, captions, strict=True))))


def captions_of(result) -> list[str]:
    return [image.caption for image in result.images]


@pytest.mark.parametrize("place, class_word, caption, expected", [
    ("front", "", "a dog", "ohwx, a dog"),
    ("front", "", "", "ohwx"),
    ("back", "", "a dog", "a dog, ohwx"),
    ("back", "", "", "ohwx"),
    ("before class word", "dog", "a Dog and a dog", "a ohwx Dog and a dog"),
    ("instead of class word", "dog", "a dog on grass", "a ohwx on grass"),
    ("before class word", "dog", "a hotdog", "ohwx, a hotdog"),
    ("before class word", "small dog", "my small dog.", "my ohwx small dog."),
    ("front", "", "a photo of OHWX.", "a photo of OHWX."),
    ("back", "", "(ohwx) on grass", "(ohwx) on grass"),
    ("before class word", "dog", "ohwx dog", "ohwx dog"),
    ("front", "", "ohwxen", "ohwx, ohwxen"),
    ("front", "", "ohwx-like", "ohwx, ohwx-like"),
])
def test_trigger_word(place, class_word, caption, expected):
    once = place_trigger(dataset(caption), "ohwx", place, class_word)
    assert captions_of(once) == [expected] and once.trigger == "ohwx"
    assert captions_of(place_trigger(once, "ohwx", place, class_word)) == [expected], "it is not doubled"


def test_trigger_with_special_characters_is_no_pattern():
    assert captions_of(place_trigger(dataset("a d.g", "a dog"), r"\1$x", "before class word", "d.g")) == [
        r"a \1$x d.g", r"\1$x, a dog"]


def test_captions_without_the_class_word_are_counted():
    result = place_trigger(dataset("a dog", "a cat", "ohwx"), "ohwx", "before class word", "dog")
    assert captions_of(result) == ["a ohwx dog", "ohwx, a cat", "ohwx"]
    assert result.notes == ("kept", "1 of 3 captions lacks the class word 'dog': the trigger 'ohwx' is put in front")


@pytest.mark.parametrize("arguments, words", [
    (("", "front"), "trigger is empty"), (("ohwx", "middle"), "place is 'middle'"),
    (("ohwx", "before class word"), "class_word is empty"),
])
def test_trigger_words_that_are_missing(arguments, words):
    with pytest.raises(UserError, match=words):
        place_trigger(dataset("a"), *arguments)


@pytest.mark.parametrize("rule, caption, expected", [
    (Replacement("cat", "dog"), "a Cat in a catalog", "a dog in a catalog"),
    (Replacement("cat", "dog"), "a bobcat and a cat", "a bobcat and a dog"),
    (Replacement("cat", "dog", whole_words=False), "a cat in a catalog", "a dog in a dogalog"),
    (Replacement("cat", "dog", match_case=True), "a Cat and a cat", "a Cat and a dog"),
    (Replacement(",", " and"), "a, b,c", "a and b andc"),
    (Replacement("a.c", r"\1"), "abc a.c", r"abc \1"),
    (Replacement(r"\b(cat|dog)s\b", r"a \1", True), "Cats, dogs", "a Cat, a dog"),
    (Replacement(r"(?P<who>cat)", r"\g<who>-\g<who>", True, match_case=True), "cat Cat", "cat-cat Cat"),
    (Replacement(r"^\s*|\s*$", "", True), "  a  ", "a"),
    (Replacement(r"x*", "-", True), "ab", "-a-b-"),
    (Replacement(prefix="photo of "), "a dog", "photo of a dog"),
    (Replacement(prefix="photo of ", suffix=", film"), "photo of a dog, film", "photo of a dog, film"),
    (Replacement("dog", "", prefix="a "), "dog", "a "),
    (Replacement(), "a  dog", "a  dog"),
    (Replacement("猫", "犬"), "白い 猫", "白い 犬"),
])
def test_replacement(rule, caption, expected):
    assert captions_of(replace_in_captions(dataset(caption), rule)) == [expected]


@pytest.mark.parametrize("find, replace, words", [
    ("a(", "", r"find is 'a\(', which is not a regular expression: missing \) at position 3"),
    ("[a", "", "unterminated character set at position"),
    ("*a", "", "nothing to repeat at position 1"),
    ("(a)", r"\2", r"replace is .*which does not fit find: no such group"),
    ("(a)", "\\", "does not fit find: bad escape"),
    ("a" * 501, "", "501 characters"),
    ("(((a{1000}){1000}){1000})", "", "more than 1000 would take too much memory"),
    ("(a{0,99}){ 11 }", "", "more than 1000"),
    ("(?=(.*))", r"\1" * 200, "longer than 10000 characters"),
])
def test_patterns_that_are_refused(find, replace, words):
    with pytest.raises(UserError, match=words):
        replace_in_captions(dataset("a " * 300), Replacement(find, replace, True))


SLOW = Replacement(r"(.*)(.*)(.*)(.*)[xy]\1!?", "", True)
"""Time grows with the fifth power of the length: some 40 ms for 45 letters, minutes for 300."""


def test_a_pattern_that_would_run_for_ever_is_stopped():
    began = time.process_time()
    with pytest.raises(UserError, match="takes longer than 2 seconds, at the caption 'ab ab"):
        replace_in_captions(dataset("ab " * 100), SLOW)
    assert time.process_time() - began < 2 * SECONDS


def test_the_time_is_for_all_captions_together(monkeypatch):
    short = "ab " * 15
    monkeypatch.setattr(text_replacement, "SECONDS", 60)
    assert len(replace_in_captions(dataset(*[short] * 20), SLOW).images) == 20
    monkeypatch.setattr(text_replacement, "SECONDS", 0.2)
    with pytest.raises(UserError, match="takes longer than 0.2 seconds"):
        replace_in_captions(dataset(*[short] * 20), SLOW)


@pytest.mark.parametrize("rule, caption, expected", [
    (TagEdit(remove=["B"]), "a, b, c", "a, c"),
    (TagEdit(remove=["*hair*"]), "long hair, hair, haircut, a", "a"),
    (TagEdit(remove=["a?", "[b]"]), "ab, a?, b, [b]", "ab, b"),
    (TagEdit(keep_only=["a", "c*"]), "a, b, cc", "a, cc"),
    (TagEdit(keep_only=["z"]), "a, b", ""),
    (TagEdit(deduplicate=True), "a, b, A, b", "a, b"),
    (TagEdit(deduplicate=True, keep_first=1), "a, b, A", "a, b"),
    (TagEdit(order="alphabetical"), "c, B, a", "a, B, c"),
    (TagEdit(order="alphabetical", keep_first=1), "z, c, a", "z, a, c"),
    (TagEdit(to_front=["c", "b"]), "a, b, c, d", "c, b, a, d"),
    (TagEdit(to_front=["*c"]), "a, bc, cc", "bc, cc, a"),
    (TagEdit(limit=2), "a, b, c", "a, b"),
    (TagEdit(limit=1, keep_first=2), "a, b, c", "a, b"),
    (TagEdit(remove=["a"], keep_first=1), "a, b, a", "a, b"),
    (TagEdit(remove=["b"], separator="|"), "a|b|c", "a | c"),
    (TagEdit(remove=["x"]), "a ,b;  c", "a ,b;  c"),
    (TagEdit(remove=["x"]), "a sentence without commas", "a sentence without commas"),
    (TagEdit(deduplicate=True), "a,, b", "a,, b"),
])
def test_tags(rule, caption, expected):
    assert captions_of(edit_tags(dataset(caption), rule)) == [expected]


def test_most_frequent_first_counts_captions_and_the_trigger_stays_first():
    data = dataset("ohwx, rare, common, common", "ohwx, common", "ohwx, middle, common", "ohwx, middle", trigger="ohwx")
    rule = TagEdit(order="most frequent first", remove=["ohwx"])
    assert captions_of(edit_tags(data, rule))[0] == "ohwx, common, common, rare"
    assert captions_of(edit_tags(data, rule))[2] == "ohwx, common, middle"
    assert captions_of(edit_tags(dataset("a, ohwx", trigger="ohwx"), rule)) == ["a"], "only as the first tag"


def test_lists_of_tags_and_no_separator():
    assert tag_list("a, long hair\n b ,\n\n") == ["a", "long hair", "b"]
    with pytest.raises(UserError, match="separator is empty"):
        edit_tags(dataset("a"), TagEdit(separator=" "))


def test_by_hand():
    data = dataset("one", "two", "three", names=["a.png", "a.png: b.png", "猫 1.png"])
    result = edit_by_hand(data, "  a.png:   new\tone\n\n猫 1.png:\nother.png: lost\na.png: b.png: second: part")
    assert captions_of(result) == ["new one", "second: part", ""]
    assert result.notes == ("kept", "the line 'other.png: lost' names no image of the dataset and changes nothing")
    assert captions_of(edit_by_hand(data, "")) == captions_of(data)


def test_by_hand_with_a_name_that_several_images_have():
    data = dataset("one", "two", "three", names=["a.png", "a.png", "b.png"])
    assert captions_of(edit_by_hand(data, "a.png: x")) == ["x", "x", "three"]
    assert captions_of(edit_by_hand(data, "a.png: x\na.png: y")) == ["x", "y", "three"]
    thrice = edit_by_hand(data, "b.png: x\nb.png: y\nb.png: z")
    assert captions_of(thrice) == ["one", "two", "z"] and "3 lines name b.png" in thrice.notes[-1]


def test_filled_in_captions_change_nothing():
    data = dataset("one", "two\nlines  and: more", "", names=["a.png", "a.png", "b: c.png"])
    assert edit_by_hand(data, "\n".join(caption_lines(data))) == data


def test_nothing_but_captions_changes():
    data = dataset("a dog", "a cat")
    result = replace_in_captions(data, Replacement("dog", "fox"))
    back = result.model_copy(update={"images": tuple(
        new.model_copy(update={"caption": old.caption}) for old, new in zip(data.images, result.images))})
    assert back == data and result.images[1] == data.images[1]


def test_changes_are_shown():
    data = dataset(*(f"a dog {number}" for number in range(12)), "", trigger="")
    report = describe_changes(data, place_trigger(data, "ohwx", "instead of class word", "dog"))
    lines = report.splitlines()
    assert lines[0] == "13 of 13 captions changed." and lines[1].startswith("1 of 13 captions lacks the class word")
    assert lines[2] == "0.png: a dog 0 → a ohwx 0" and lines[-1] == "… and 5 more" and len(lines) == 11
    assert describe_changes(data, data) == "0 of 13 captions changed."
