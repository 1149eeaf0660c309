"""Metadata of any shape in other people's files: no tool stops, and what is shown is short, plain and sane."""
import json
import math
import struct

import pytest
import torch
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.peft_config import read_peft_config
from finetune.trainers.artifacts.tensor_files import finite_entries
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.files import read_json
from finetune.trainers.spec import FolderSpec
from finetune.trainers.stacking import cards
from finetune.trainers.stacking.cards import card, family_of, number_of, tags_of, triggers_of
from finetune.trainers.stacking.inspection import norms_by_block
from finetune.trainers.tools.file_tasks import TOOLS
from finetune.trainers.words import holds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
KEYS = ("ss_network_alpha", "ss_network_dim", "ss_tag_frequency", "ss_datasets", "ss_base_model_version", "ss_v2",
        "ss_sd_model_name", "modelspec.trigger_phrase", "modelspec.architecture", "modelspec.title",
        "modelspec.hash_sha256", "sshs_model_hash", "lora_adapter_metadata", "adapter_config",
        "ss_network_args", "ss_output_name", "format", "modelspec.thumbnail")
FIELDS = ("subsets", "class_tokens", "alpha_pattern", "rank_pattern", "lora_alpha", "unet.lora_alpha", "r", "use_rslora")
NUMBERS = ("1e999", "-1e999", "nan", "Infinity", "NaN", "9" * 5000, "1" + "0" * 400, "0x10", "", "-0", "1_000", "８")


def tensors(rank=2):
    return {f"{LAYER}.lora_down.weight": torch.ones(rank, 768), f"{LAYER}.lora_up.weight": torch.ones(320, rank),
            f"{LAYER}.alpha": torch.tensor(1.0)}


def lora(path, metadata=None, **changed):
    """A file whose header holds this metadata as it is, also where the format's own library would not write it."""
    content = {name: tensor for name, tensor in {**tensors(), **changed}.items() if tensor is not None}
    save_file(content, path)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length:])
    return path


def done(task, folder, **fields):
    folders = FolderSpec(runs=str(folder / "runs"), caches=str(folder))
    spec = TOOLS[task].spec(name="made", folders=folders, device="cpu", **fields)
    return TOOLS[task].work(spec, folder, silent, lambda: False)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NUMBERS)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from([*KEYS, *FIELDS]) | st.text(max_size=5), inner, max_size=4), max_leaves=12)
VALUES = TREES | TREES.map(json.dumps) | st.sampled_from([
    "[" * 5000, "{", '{"a":' * 3000, '{"a": {"b": NaN, "c": -Infinity, "d": 1e999}}', '[{"subsets": 3}]',
    '[{"subsets": [[]]}]', '[{"subsets": [{"class_tokens": 5}]}]', '"\\ud800"', "\ud800", "a,b\x1b[31m\u202e", "x" * 20_000])
METADATA = TREES | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=10), VALUES, max_size=6)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(METADATA, st.sampled_from([torch.tensor(1.0), None]))
def test_no_tool_stops_at_metadata(tmp_path, metadata, alpha):
    """Without an alpha tensor the scale is what peft's metadata says, if that says something sensible."""
    path = lora(tmp_path / "a.safetensors", metadata, **{f"{LAYER}.alpha": alpha})
    facts = card(path, "a.safetensors")
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    text.encode()
    assert len(text) < 20_000 and not [sign for sign in text if ord(sign) < 32 or sign == "\u202e"]
    assert facts["alpha"] == "" or math.isfinite(float(facts["alpha"]))
    assert (facts["family"], facts["rank"], facts["method"]) == ("sd1", 2, "LoRA")
    header = read_header(path)[1]
    assert all(isinstance(word, str) for word in [*triggers_of(header), *tags_of(header), family_of({}, header)])
    assert not any(holds("a prompt about nothing", word) for word in triggers_of(header)), "what Keyword LoRAs asks"
    content = {name: entry.tensor() for name, entry in finite_entries(path).items()}
    scale = read_peft_config(path, header, content).scale(LAYER, 2) if alpha is None else None
    norms = norms_by_block(content, "sd1", {LAYER: scale})  # what the inspector draws
    assert norms.keys() == {"IN04"} and all(math.isfinite(norm) for norm in norms["IN04"].values())
    reports = [done("merge", tmp_path, loras=[{"path": str(path)}], rule="exact", file_precision="fp32"),
               done("convert", tmp_path, lora=str(path), names="same", file_precision="fp32"),
               done("metadata", tmp_path, lora=str(path), changes=[("modelspec.title", "new")])]
    json.dumps([report.model_dump(mode="json") for report in reports], ensure_ascii=False).encode()
    assert reports[2].metadata == read_header(tmp_path / "made.safetensors")[1]
    assert reports[2].metadata["modelspec.title"] == "new"
    assert load_file(tmp_path / "made.safetensors").keys() == read_header(path)[0].keys()
    assert all(change.isfinite().all() for change in (layer.change() for layer in read_lora(path).layers.values()))


@pytest.mark.parametrize("text, shown", [(number, "") for number in NUMBERS if number not in ("-0", "1_000", "８")] + [
    ("8", "8"), ("4.0", "4.0"), ("1e-3", "1e-3"), (" 2 ", "2")])
def test_numbers_that_are_none_are_not_shown(text, shown):
    assert number_of(text) == shown


def test_tags_are_counted_by_numbers_that_are_some():
    counts = {"cat": 3, "dog": math.nan, "emu": math.inf, "fox": -math.inf, "gnu": True, "hen": "9", "ibis": 4.5}
    frequency = json.dumps({"d": counts, "e": [1], "f": None})
    assert tags_of({"ss_tag_frequency": frequency}) == ["emu", "ibis", "cat", "gnu"]


@pytest.mark.parametrize("datasets, words", [
    ('[{"subsets": 3}]', []), ('[{"subsets": {"class_tokens": "a"}}]', []), ('[{"subsets": [3, [], null]}]', []), ("3", []),
    ('[3, {"subsets": [{"class_tokens": ["a"]}, {"class_tokens": null}, {"class_tokens": "a, b"}]}]', ["a", "b"]),
])
def test_trigger_words_are_taken_from_where_there_are_some(datasets, words):
    assert triggers_of({"ss_datasets": datasets}) == words
    assert triggers_of({"ss_datasets": datasets, "modelspec.trigger_phrase": "b, , c"}) == ["b", "c", *words[:1]]


def test_megabytes_of_metadata_are_read_once_and_shown_short(tmp_path):
    many = {f"tag {number}": number for number in range(100_000)}
    path = lora(tmp_path / "a.safetensors", {
        "ss_tag_frequency": json.dumps({"d": many}), "modelspec.trigger_phrase": "a," * 1_000_000 + "last",
        "ss_datasets": "[" * 1_000_000})
    facts = card(path, "a.safetensors")
    assert facts["tags"][0] == "tag 99999" and facts["triggers"] == ["a"] and len(json.dumps(facts)) < 10_000


def test_a_file_of_json_that_is_too_deep_counts_as_damaged(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert read_json(tmp_path / "deep.json") is None


# ---- numbers that are none -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("task, fields", [
    ("merge", {"rule": "exact"}), ("merge", {"rule": "fixed", "rank": 1}), ("convert", {"names": "same"}),
    ("convert", {"names": "same", "file_precision": "fp32"}), ("metadata", {"changes": [("a", "b")]})])
@pytest.mark.parametrize("part", ["lora_up.weight", "lora_down.weight", "alpha"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_tool_names_the_file_and_the_tensor(task, fields, part, value, tmp_path):
    broken = torch.full_like(tensors()[f"{LAYER}.{part}"], value)
    path = lora(tmp_path / "broken.safetensors", **{f"{LAYER}.{part}": broken})
    given = {"loras": [{"path": str(path)}]} if task == "merge" else {"lora": str(path)}
    with pytest.raises(UserError, match=f"{LAYER}.{part} holds values that are not numbers in 'broken.safetensors'"):
        done(task, tmp_path, **given, **fields)
    assert not (tmp_path / "made.safetensors").exists()


def test_tensors_that_a_tool_leaves_out_are_looked_at_too(tmp_path):
    bias = f"{LAYER}.diff_b"
    path = lora(tmp_path / "broken.safetensors", **{bias: torch.tensor([1.0, math.nan])})
    with pytest.raises(UserError, match=f"{bias} holds values that are not numbers in 'broken.safetensors'"):
        read_lora(path)


def test_json_that_no_trainer_writes_is_not_parsed(monkeypatch):
    monkeypatch.setattr(cards, "LARGEST_JSON", 20)
    assert tags_of({"ss_tag_frequency": '{"a": {"b": 1}}'}) == ["b"]
    assert tags_of({"ss_tag_frequency": '{"a": {"b": 1, "c": 2}}'}) == []


@pytest.mark.parametrize("shape", [(), (4,), (4, 0)])
def test_factors_of_any_shape_have_a_card(shape, tmp_path):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{layer}.lora_down.weight": torch.zeros(shape), f"{layer}.lora_up.weight": torch.zeros(8, 4)},
              tmp_path / "odd.safetensors")
    assert card(tmp_path / "odd.safetensors", "odd")["keys"] == 2
