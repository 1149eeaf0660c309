"""One rule for "the text holds the word", wherever the pack asks: datasets, captions, prompts, learned words."""
import unicodedata

import pytest
from finetune.trainers import spec as specs
from finetune.trainers.captioning.texts import own_words
from finetune.trainers.data.captions.caption_editing import PLACES, TagEdit, edit_tags, place_trigger
from finetune.trainers.data.captions.text_replacement import Replacement, replace_in_captions
from finetune.trainers.data.captions.trigger_advice import class_notes
from finetune.trainers.data.captions.trigger_word import with_trigger
from finetune.trainers.data.report.lint import trigger_findings
from finetune.trainers.families.text.clip import clip_tokenizer
from finetune.trainers.words import WholeWord, counted, holds, listed, one_line, printable, shown, whole_word, words_of
from hypothesis import given, settings
from hypothesis import strategies as st

TOKENIZER = clip_tokenizer()
NFC, NFD = (lambda text, form=form: unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
HELD = [
    ("sks dog", "a photo of sks dog."), ("sks dog", "a photo of (sks dog:1.2)"), ("sks dog", 'a "sks dog" on grass'),
    ("sks dog", "sks dog's ball"), ("sks dog", "Sks Dog: portrait"), ("sks dog", "a sks dog; outdoors"),
    ("sks dog", "«sks dog»"), ("sks dog", "‘sks dog’"), ("sks dog", "[sks dog]"), ("sks dog", "{sks dog}!"),
    ("sks dog", "red/sks dog"), ("sks dog", "sks dog…"), ("sks dog", "sks dog—red"), ("sks dog", "l'sks dog"),
    ("sks dog", "sks  dog\ton\u00a0grass"), ("sks  dog", "sks dog"), ("ohwx", "- ohwx -"), ("ohwx", "ohwx-, red"),
    ("ohwx", "ohwx。"), ("ohwx", "「ohwx」、猫"), ("ohwx", "（ohwx：1.2）"), ("ohwx", "草地上的ohwx猫"),
    ("ohwx", "ohwx는 개"), ("ohwx", "ภาพของohwxบนหญ้า"), ("猫", "一只猫在草地上"), ("草地", "一只猫在草地上"),
    ("ねこ", "しろいねこのしゃしん"), ("แมว", "รูปแมวบนหญ้า"), ("강아지", "강아지가 잔디에"),
    ("한국", NFD("한국 사람")), (NFD("한국"), "한국"), ("café", NFD("a Café.")), (NFD("café"), "a CAFÉ"),
    ("Đặng", NFD("Đặng")), (NFD("ねこが"), "ねこが"), ("ΟΔΟΣ", "οδος, red"), ("神", "神"),
    ("<cat-toy>", "a <cat-toy>."), ("<cat-toy>", "a<Cat-Toy>s"), ("(ohwx)", "a ((ohwx)) b"), ("c++", "in C++, red"),
    ("c++", "c++11"), ("mr. x", "Mr. X's hat"), ("-ohwx-", "a -ohwx-b"), ("🐱", "a 🐱cat"), ("$x\\1", "a $X\\1."),
    ("हिन्दी", "हिन्दी।"),
]
NOT_HELD = [
    ("ohwx", "ohwxen"), ("ohwx", "xohwx"), ("ohwx", "ohwx-like"), ("ohwx", "un-ohwx"), ("ohwx", "ohwx_2"),
    ("ohwx", "ohwx2"), ("cat", "a catalog"), ("cat", "<cat-toy>"), ("toy", "<cat-toy>"), ("c++", "abc++"),
    ("sks dog", "sks-dog"), ("sks dog", "sksdog"), ("cafe", NFD("café")), ("cafe", "café"), ("e", NFD("é")),
    ("x", NFD("éx")), ("か", NFD("が")), ("가", NFD("각")), ("ก", "ก้อน"), ("हिन्द", "हिन्दी"), ("👩", "👩\u200d🚀"),
    ("ohwx", ""), ("", "anything"), (" ", "a b"),
]


@pytest.mark.parametrize("trigger, caption", HELD)
def test_a_word_is_held(trigger, caption):
    assert holds(caption, trigger) and with_trigger(caption, trigger) == caption
    image = specs.DatasetImage(path="p", name="p", caption=caption, size=(8, 8), digest="0")
    dataset = specs.DatasetSpec(name="d", images=(image,), trigger=trigger)
    for place in PLACES:
        assert place_trigger(dataset, trigger, place, "grass").images == dataset.images
    assert any("hold the trigger" in note for note in class_notes(dataset, dataset))
    assert not [each for each in trigger_findings([caption], trigger, TOKENIZER) if each.images]
    assert not whole_word(trigger).search(whole_word(trigger).sub("•", caption))
    if trigger == trigger.strip():
        replaced = replace_in_captions(dataset, Replacement(trigger, "•")).images[0].caption
        assert replaced == whole_word(trigger).sub("•", caption)


@pytest.mark.parametrize("trigger, caption", NOT_HELD)
def test_a_part_of_a_longer_word_is_not_the_word(trigger, caption):
    assert not holds(caption, trigger) and whole_word(trigger).sub("•", caption) == caption
    assert with_trigger(caption, trigger) == (", ".join(filter(None, [trigger, caption])) if trigger.strip() else caption)


TEXT = st.text(st.one_of(
    st.sampled_from("ab-_ .,:;'\"()<>+$\\1猫がねกแ้한é\u0301\u3099\u200dßſKİ🐱"), st.characters(codec="utf-8")), max_size=12)


@settings(max_examples=400, deadline=None)
@given(TEXT, TEXT, TEXT, st.sampled_from(PLACES))
def test_a_trigger_is_added_once_however_often(caption, trigger, class_word, place):
    once = with_trigger(caption, trigger)
    assert with_trigger(once, trigger) == once and (not trigger.strip() or holds(once, trigger))
    assert with_trigger(NFD(caption), NFC(trigger)) == NFD(caption) or not holds(NFC(caption), NFC(trigger))
    image = specs.DatasetImage(path="p", name="p", caption=caption, size=(8, 8), digest="0")
    dataset = specs.DatasetSpec(name="d", images=(image,))
    if trigger.strip() and class_word.strip():
        once = place_trigger(dataset, trigger, place, class_word)
        assert holds(once.images[0].caption, trigger)
        assert place_trigger(once, trigger, place, class_word).images == once.images


def test_a_trigger_in_the_place_of_a_word_is_a_word_of_its_own():
    image = specs.DatasetImage(path="p", name="p", caption="A狗B on grass", size=(8, 8), digest="0")
    dataset = specs.DatasetSpec(name="d", images=(image,))
    for place, caption in (("instead of class word", "A ohwx B on grass"), ("before class word", "A ohwx 狗 B on grass")):
        assert place_trigger(dataset, "ohwx", place, "狗").images[0].caption == caption


def test_a_search_goes_on_behind_a_part_of_a_longer_word():
    word = whole_word("a a")
    assert [found.span() for found in word.finditer("xa a a, A  a")] == [(3, 6), (8, 12)]
    assert word.match("a a b") and not word.match("b a a") and word.fullmatch("A A") and not word.fullmatch("a a b")
    assert word.sub(lambda found: f"<{found[0]}>", "a a, a a", 1) == "<a a>, a a"
    assert whole_word("a").sub(r"\1", "a b") == r"\1 b"


def test_blanks_around_what_is_replaced_are_looked_for_too():
    assert WholeWord(" cat").sub("", "a cat, a catalog, cat") == "a, a catalog,"
    assert WholeWord("cat ").sub("", "a cat toy, tomcat toy") == "a toy, tomcat toy"
    assert not WholeWord("Cat", match_case=True).search("a cat")


def test_a_trigger_in_front_is_known_with_its_marks():
    image = specs.DatasetImage(path="p", name="p", caption="Sks Dog, z, a", size=(8, 8), digest="0")
    dataset = specs.DatasetSpec(name="d", images=(image,), trigger="sks dog")
    assert edit_tags(dataset, TagEdit(order="alphabetical")).images[0].caption == "Sks Dog, a, z"
    for trigger, caption, rest in (("ohwx", "ohwx: a cat", "a cat"), ("<cat-toy>", "<cat-toy>。", ""),
                                   ("c++", "C++, red", "red"), ("ohwx", "ohwx-like cat", "ohwx-like cat"),
                                   ("猫", "猫、草", "草")):
        assert own_words(caption, trigger) == rest


def test_words_of_scripts_with_and_without_spaces():
    assert words_of("A red-haired girl’s CAFÉ, 3 cats. _x_") == ["a", "red-haired", "girl’s", "café", "3", "cats", "_x_"]
    assert words_of("白い猫、ohwx犬 รูปแมว") == ["白い猫", "ohwx", "犬", "รูปแมว"]
    assert words_of(NFD("é हिन्दी")) == ["é", "हिन्दी"]


def test_class_captions_in_scripts_without_spaces_share_signs():
    def dataset(caption):
        return specs.DatasetSpec(name="d", trigger="ohwx", images=(
            specs.DatasetImage(path="p", name="p", caption=caption, size=(8, 8), digest="0"),))

    assert class_notes(dataset("草地上的ohwx狗"), dataset("一只狗的照片")) == []
    assert "shares a word" in class_notes(dataset("草地上的ohwx狗"), dataset("猫"))[0]


def test_text_that_people_see():
    assert one_line(" a\nb\u2028c\0d\ud800 ") == "a b c d?"
    assert printable("a\nb\u202ec") == "a\ufffdb\ufffdc" and len(shown("x" * 300)) == 71
    assert listed(["a\nb", "c", "d", "e"]) == "a\ufffdb, c, d, and 1 more"
    assert [counted(number, "image") for number in (0, 1, 2, 1500)] == ["0 images", "1 image", "2 images", "1,500 images"]
    assert counted(2, "copy", "copies") == "2 copies" and counted(1, "copy", "copies") == "1 copy"
