"""Every rule on captions: captions that it finds and captions that it leaves alone, with CLIP's real vocabulary."""
import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.report.lint import cut_at, frequencies, lint, tokens_of
from finetune.trainers.families.text.clip import clip_tokenizer
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from finetune.trainers.families.text.t5 import t5_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


def dataset(captions, digests=None):
    return specs.DatasetSpec(name="d", images=tuple(
        specs.DatasetImage(path="p", name=f"{number}.png", caption=caption, size=(8, 8), digest=str(digest))
        for number, (caption, digest) in enumerate(zip(captions, digests or range(len(captions)), strict=True))))


LONG = "ohwx, " + " ".join(f"word{number}" for number in range(60))
RULES = [
    # kind, captions, trigger, places that it finds (None: it says nothing)
    ("empty caption", ["a dog", "", " \n "], "", (1, 2)),
    ("empty caption", ["a dog", "."], "", None),
    ("missing trigger", ["ohwx dog", "a dog", "OHWX", "ohwxen", ""], "ohwx", (1, 3)),
    ("missing trigger", ["ohwx dog", "a photo of ohwx.", "(OHWX)"], "ohwx", None),
    ("missing trigger", ["a dog"], "", None),
    ("split trigger", ["ohwx man", "ohwx_man", "ohwx, man", "ohwxman", "o h w x man"], "ohwx man", (1, 2, 3, 4)),
    ("split trigger", ["oh-wx", "a ohwx", "oh wxy"], "ohwx", (0,)),
    ("split trigger", ["a b", "ab"], "ab", None),
    ("split trigger", ["ohwx and oh-wx", "a dog"], "ohwx", None),
    ("trigger word", ["dog"], "dog", ()),
    ("trigger word", ["xkqzvwjbyfpm"], "xkqzvwjbyfpm", ()),
    ("trigger word", ["ohwx dog"], "ohwx", None),
    ("too long", [LONG, "ohwx"], "", (0,)),
    ("too long", ["a " * 75], "", None),
    ("too long", ["a " * 76], "", (0,)),
    ("duplicate caption", ["a dog", "A  dog", "a cat", "", ""], "", (0, 1)),
    ("duplicate caption", ["a dog", "a dog on grass"], "", None),
    ("one caption", ["a dog", "a dog"], "", ()),
    ("one caption", ["a dog", "a dog", "a cat"], "", None),
    ("one caption", ["a dog"], "", None),
    ("fused with the trigger", ["ohwx, smile, hat", "ohwx, Hat, tree", "sea, hat, ohwx", "a dog"], "ohwx", ()),
    ("fused with the trigger", ["ohwx with a hat", "a hat of ohwx", "ohwx, hat"], "ohwx", ()),
    ("fused with the trigger", ["ohwx, smile, hat", "ohwx, tree", "ohwx, hat"], "ohwx", None),
    ("fused with the trigger", ["ohwx, hat", "ohwx, hat"], "ohwx", None),
    ("fused with the trigger", ["ohwx, hat", "ohwx, hat", "a hat"], "ohwx", None),
    ("fused with the trigger", ["a hat", "the hat", "hat"], "", None),
    ("fused with the trigger", ["ohwx on the grass", "ohwx in the sea", "a photo of the ohwx"], "ohwx", None),
]


@pytest.mark.parametrize("kind, captions, trigger, places", RULES)
def test_rules(kind, captions, trigger, places, tokenizer):
    found = [finding.images for finding in lint(dataset(captions), trigger, tokenizer) if finding.kind == kind]
    assert found == ([] if places is None else [places])


def test_every_kind_has_both_examples():
    kinds = {kind for kind, *_ in RULES}
    assert kinds == {kind for *_, places in RULES if places is None for kind in kinds}
    for kind in kinds:
        verdicts = {places is None for name, _, _, places in RULES if name == kind}
        assert verdicts == {True, False}, kind


def test_copies_of_one_file_may_share_their_caption(tokenizer):
    data = dataset(["a dog", "a dog", "a cat"], digests=["same", "same", "other"])
    assert not [finding for finding in lint(data, "", tokenizer) if finding.kind == "duplicate caption"]


@pytest.mark.parametrize("words", [60, 80, 200])
def test_the_cut_is_where_the_encoder_stops_reading(words, tokenizer):
    """By the token ids themselves: what is kept fits, and with the next word it does not."""
    caption = " ".join(f"word{number}" for number in range(words))
    lost = cut_at(caption, tokenizer, 75)
    kept = caption.removesuffix(lost).strip()
    assert caption == f"{kept} {lost}"
    seen = tokenizer(caption, truncation=True, max_length=77).input_ids[1:-1]
    whole = tokenizer(kept).input_ids[1:-1]
    assert seen[:len(whole)] == whole and len(whole) <= 75
    assert tokens_of(f"{kept} {lost.split()[0]}", tokenizer) > 75
    assert cut_at(kept, tokenizer, 75) == ""


def test_the_cut_is_shown(tokenizer):
    [finding] = [each for each in lint(dataset(["short", LONG]), "", tokenizer) if each.kind == "too long"]
    assert "Of No. 2 it does not see: … word" in finding.text and finding.mark == "cut"


def test_models_that_cut_nothing_are_told_so(tokenizer):
    [finding] = [each for each in lint(dataset(["short", LONG]), "", tokenizer, cut=False) if each.kind == "too long"]
    assert finding.text.startswith("1 image has a caption longer than the 75 tokens that the model was made for. It is read")
    assert finding.images == (1,) and finding.mark == "long"


@pytest.mark.parametrize("words", [t5_tokenizer, qwen_tokenizer])
def test_tokens_are_those_of_the_caption_alone(words):
    assert tokens_of("a cat", words()) == (3 if words is t5_tokenizer else 2)


def test_what_is_fused_is_named(tokenizer):
    data = dataset(["ohwx dog, red hat", "ohwx dog, tree, red hat", "red hat, ohwx dog"])
    [finding] = [each for each in lint(data, "ohwx", tokenizer) if each.kind == "fused with the trigger"]
    assert "there is also 'dog', 'red hat':" in finding.text


def test_frequencies():
    assert frequencies(["a hat, b, c", "b, d, e", "B, b, d"]) == [("b", 3), ("d", 2), ("a hat", 1), ("c", 1), ("e", 1)]
    assert frequencies(["ohwx, a dog runs", "the dog", "dog, dog"]) == [("dog", 3), ("ohwx", 1), ("runs", 1)], "sentences"
    assert frequencies([""]) == []
