"""Notes on trigger words and class images, with CLIP's real vocabulary."""
from pathlib import Path

import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.captions.trigger_advice import trigger_notes, word_notes
from finetune.trainers.events import silent
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from finetune.trainers.vocabulary import is_common
from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer():
    return CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer")


def dataset(captions, trigger=""):
    images = tuple(specs.DatasetImage(path="p", name="p", caption=caption, size=(8, 8), digest=str(number))
                   for number, caption in enumerate(captions))
    return specs.DatasetSpec(name="d", images=images, trigger=trigger)


@pytest.mark.parametrize("trigger, words", [
    ("dog", "is a common word"), ("red", "is a common word"), ("Cat", "is a common word"),
    ("ohwx", None), ("sks", None), ("zwx", None), ("ohwx dog", None),
    ("xkqzvwjbyfpm", "is split into"),
])
def test_words(trigger, words, tokenizer):
    notes = trigger_notes(dataset([f"{trigger} on a table"], trigger), None, tokenizer)
    assert (words is None and notes == []) or (words in notes[0] and len(notes) == 1)


def test_the_recommended_word_is_said_to_have_the_tokens_that_it_has(tokenizer):
    [note] = word_notes("my very own rare word", tokenizer)
    assert note.startswith("the trigger 'my very own rare word' is split into 5 tokens") and note.endswith("'ohwx' has one")
    demo = CLIPTokenizer.from_pretrained(ROOT / "demo_base" / "tokenizer")
    [note] = word_notes("my very own rare word", demo)
    assert note.endswith(f"'ohwx' has {['none', 'one', 'two', 'three'][len(demo.tokenize('ohwx'))]}")


def test_a_common_word_is_one_token_with_a_low_id(tokenizer):
    facts = {word: is_common(word, tokenizer) for word in ("dog", "Square", "ohwx", "sks", "unicorn", "cat-toy", "zwx", "")}
    assert [word for word, common in facts.items() if common] == ["dog", "Square"]


def test_captions_without_the_trigger(tokenizer):
    notes = trigger_notes(dataset(["ohwx dog", "a photo of OHWX, outside", "a dog", "ohwxen"], "ohwx"), None, tokenizer)
    assert len(notes) == 1 and notes[0].startswith("2 of 4 captions lack the trigger 'ohwx'")
    assert trigger_notes(dataset(["a dog", ""]), None, tokenizer) == []


def test_class_images(tokenizer):
    subject = dataset(["ohwx dog on the grass"], "ohwx")
    assert trigger_notes(subject, dataset(["a Dog."]), tokenizer) == []
    assert "shares a word" in trigger_notes(subject, dataset(["the house", "ohw"]), tokenizer)[0]
    assert trigger_notes(subject, dataset(["ohwx dog", "dog"]), tokenizer)[0].startswith("1 of 2 captions of class")
    assert trigger_notes(dataset(["ohwx"], "ohwx"), dataset(["a dog"]), tokenizer) == []


def test_every_method_tells_them(tiny_bases, squares, make_spec):
    for name, method in (("lora", specs.LoraSpec(rank=1)), ("full", specs.FullSpec())):
        spec = make_spec(tiny_bases["sd1"], name=name, method=method,
                         dataset=squares.model_copy(update={"trigger": "square"}),
                         training=specs.TrainingSpec(steps=1, batch_size=1, resolution=64))
        notes = train_run(spec, open_run(spec), silent).notes
        assert any("'square' is a common word" in note for note in notes)
