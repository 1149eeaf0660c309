"""What people read on nodes is made from the ids."""
import json

import make_labels
import pytest


def test_the_file_is_what_the_script_writes():
    """To renew: python scripts/make_labels.py"""
    assert make_labels.LABELS.read_text(encoding="utf-8") == make_labels.text()


@pytest.mark.parametrize("identifier, words", [
    ("text_encoders", "text encoders"), ("repeats_2", "repeats 2"), ("exact_svd", "exact SVD"), ("lora_a", "LoRA a"),
    ("min_snr_gamma", "min-SNR gamma"), ("ckpt_name", "checkpoint name"),
])
def test_a_label_is_the_id_in_words(identifier, words):
    assert make_labels.label(identifier) == words


def test_labels_are_short_and_tell_inputs_apart():
    schemas = json.loads(make_labels.SCHEMAS.read_text(encoding="utf-8"))
    for node, facts in make_labels.labels(schemas).items():
        names = [each["name"] for each in facts.get("inputs", {}).values()]
        assert len(names) == len(set(names)) and all(0 < len(name) <= 28 and "_" not in name for name in names), node
    known = {name for facts in schemas.values() for name in (*facts["inputs"], *facts["outputs"])}
    assert set(make_labels.EXCEPTIONS) <= known
