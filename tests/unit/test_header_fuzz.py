"""The short form of benchmarks/header_fuzz.py: broken files come to sentences of the pack's own, and to nothing else."""
import pytest
from finetune.benchmarks import header_fuzz

READERS = ("entries", "recognition", "weights", "lora tools", "card", "embedding")


@pytest.mark.parametrize("name", READERS)
def test_broken_files_are_sentences(name, tmp_path):
    kind, read = header_fuzz.engine_readers()[name]
    told = list(header_fuzz.failures(kind, read, tmp_path / "broken.safetensors", tries=250, seed=1))
    assert [text for outcome, text in told if outcome == "failed"] == []
    outcomes = [outcome for outcome, _ in told]
    assert outcomes.count("refused") > 40 and outcomes.count("sound") > 40  # the faults reach the header and what is behind


def test_no_reader_is_forgotten():
    assert set(header_fuzz.engine_readers()) == set(READERS)
