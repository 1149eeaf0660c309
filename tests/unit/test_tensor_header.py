"""Headers of safetensors files that lie: each becomes a sentence, and none makes the reader reserve what it claims."""
import json
import os
import struct
import tracemalloc

import pytest
import torch
from finetune.trainers.artifacts import tensor_header
from finetune.trainers.artifacts.tensor_files import read_entries
from finetune.trainers.artifacts.tensor_header import MAXIMUM_HEADER, read_header
from finetune.trainers.errors import UserError
from finetune.trainers.families.recognition import recognize
from safetensors.torch import save_file

TENSOR = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path, header, data=bytes(24), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(**changes):
    return {"a": {**TENSOR, **changes}}


REFUSED = {
    "no JSON": b"{", "a list": b"[1]", "not UTF-8": b'{"\xff": 1}', "UTF-16": json.dumps(entry()).encode("utf-16-le"),
    "deep": b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "many brackets": b'{"a":[' + b"[]," * 4_100_000 + b"[]]}", "no tensors": {"__metadata__": {"a": "b"}},
    "a long number": b'{"a":' + b"9" * 10_000 + b"}", "not a number": b'{"a": NaN}',
    "two of a name": b'{"a":' + json.dumps(TENSOR).encode() + b',"a":' + json.dumps(TENSOR).encode() + b"}",
    "a field twice": b'{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24],"shape":[3,2]}}',
    "null": {"a": None}, "text": {"a": "F32"}, "no dtype": {"a": {"shape": [2, 3], "data_offsets": [0, 24]}},
    "unknown dtype": entry(dtype="F31"), "a dtype's list": entry(dtype=["F32"]), "null dtype": entry(dtype=None),
    "null shape": entry(shape=None), "text for a shape": entry(shape="23"), "a nested shape": entry(shape=[[2, 3]]),
    "negative": entry(shape=[-2, -3]), "fractions": entry(shape=[2.0, 3.0]), "truth values": entry(shape=[True, 6]),
    "infinite": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 24]}}',
    "an overflow": entry(shape=[2**63 + 2, 3]), "a product that overflows": entry(shape=[2**33, 2**33, 2**33]),
    "an overflow times nothing": entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
    "other size": entry(shape=[2, 2]), "other dtype's size": entry(dtype="F16"), "many axes": entry(shape=[1] * 70 + [6]),
    "half bytes": entry(dtype="F4", shape=[3], data_offsets=[0, 1]),
    "one place": entry(data_offsets=[24]), "three places": entry(data_offsets=[0, 12, 24]),
    "places backwards": entry(data_offsets=[24, 0]), "negative places": entry(data_offsets=[-24, 0]),
    "no places": entry(data_offsets=None), "a hole": {"a": {**TENSOR, "shape": [5], "data_offsets": [4, 24]}},
    "an overlap": {"a": TENSOR, "b": {**TENSOR, "shape": [2], "data_offsets": [16, 24]}},
    "less than the file": {"a": {**TENSOR, "shape": [5], "data_offsets": [0, 20]}},
    "a name with a line break": {"a\nb": TENSOR},
    "a name with half a sign": b'{"\\ud800": ' + json.dumps(TENSOR).encode() + b"}",
    "a terminal's sign": {"\x1b[31m": TENSOR}, "a long name": {"a" * 5000: TENSOR},
}


@pytest.mark.parametrize("header", REFUSED.values(), ids=REFUSED)
def test_a_header_that_cannot_be_true_is_one_sentence_with_the_file(header, tmp_path):
    path = write(tmp_path / "odd.safetensors", header)
    for read in (read_header, read_entries):
        with pytest.raises(UserError, match=r"^'odd.safetensors' is not a safetensors file, or is damaged: .+\.$") as told:
            read(path)
        assert str(told.value).isprintable()


@pytest.mark.parametrize("header, data, reason", [
    ({}, b"", "it holds no tensors"), ({"__metadata__": {"a": "b"}}, b"", "it holds no tensors"),
    (entry(shape=[2**40, 0], data_offsets=[0, 0]), b"", "the shape of a is none"),
    (entry(dtype="F4", shape=[3], data_offsets=[0, 1]), b"1", "the shape of a does not fill whole bytes"),
    (entry(data_offsets=[0, 2**63]), bytes(24), "the place of a is none"),
    (entry(shape=[1] * 9), bytes(4), "the shape of a is none"),
    ({"a": TENSOR, "b": {**TENSOR, "data_offsets": [12, 36]}}, bytes(36), "the place of b does not fit"),
    (entry(), bytes(25), "1 bytes follow behind its last tensor"),
])
def test_what_nothing_else_in_a_header_shows_is_told(header, data, reason, tmp_path):
    """One thing is wrong in each, and no other check could refuse the file for it."""
    with pytest.raises(UserError, match=reason):
        read_header(write(tmp_path / "odd.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"\x01", b"\xff" * 8, struct.pack("<Q", 2**60) + b"{}",
                                     struct.pack("<Q", 100) + b"{}"])
def test_no_room_for_a_header(content, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="'cut.safetensors' is not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize("length, size", [(2**60, 10), (100, 10), (3, 10), (MAXIMUM_HEADER + 1, MAXIMUM_HEADER + 100)])
def test_no_header_is_read_that_is_longer_than_the_file_or_the_format_allows(length, size, tmp_path, monkeypatch):
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", length))
    os.truncate(path, size)  # what is behind takes no room on the disk
    monkeypatch.setattr(tensor_header, "_parsed", lambda data: pytest.fail(f"{len(data)} bytes were read"))
    with pytest.raises(UserError, match="its header is longer than the file or than the format allows"):
        read_header(path)


def test_entries_are_counted_before_they_are_parsed(tmp_path, monkeypatch):
    header = {f"{number}": {**TENSOR, "data_offsets": [24 * number, 24 * number + 24]} for number in range(9)}
    path = write(tmp_path / "many.safetensors", header, bytes(9 * 24))
    assert len(read_header(path)[0]) == 9
    with monkeypatch.context() as patch, pytest.raises(UserError, match="more entries than any model"):
        patch.setattr(tensor_header, "MAXIMUM_TENSORS", 8)
        read_header(path)
    monkeypatch.setattr(tensor_header, "MAXIMUM_PIECES", 50)
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(UserError, match="more entries than any model"):
        read_header(path)


def test_a_header_that_claims_sixteen_gigabytes_reserves_none_of_them(tmp_path):
    path = write(tmp_path / "huge.safetensors", entry(shape=[4, 2**30], data_offsets=[0, 2**34]))
    tracemalloc.start()
    with pytest.raises(UserError, match="'huge.safetensors' is incomplete: 24 of 17179869184 bytes"):
        read_entries(path)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("nowhere", path), lambda path: None])
def test_what_is_no_file(make, tmp_path):
    path = tmp_path / "thing.safetensors"
    make(path)
    with pytest.raises(UserError, match="'thing.safetensors' (cannot be read|is not a safetensors file)"):
        read_header(path)


@pytest.mark.parametrize("metadata, read", [
    ({"a": "b", "epoch": 3, "tags": None, "more": ["x"], "deep": {"x": 1}, "rate": float("inf")}, {"a": "b"}),
    (None, {}), ([1, 2], {}), ("text", {}), (3, {}),
])
def test_metadata_of_other_types_are_left_out(metadata, read, tmp_path):
    path = write(tmp_path / "odd.safetensors", {"__metadata__": metadata, **entry()})
    tensors, found = read_header(path)
    assert found == read and tensors == entry()


def test_halves_of_characters_in_metadata_become_signs_that_can_be_stored(tmp_path):
    text = json.dumps({"__metadata__": {"a\ud800": "b\udfffc", "ü": "日本"}, **entry()}).encode()
    assert read_header(write(tmp_path / "odd.safetensors", text))[1] == {"a?": "b?c", "ü": "日本"}


def test_what_the_format_allows_is_read(tmp_path):
    """Entries in any order, unknown fields, empty tensors, numbers without axes, and every dtype."""
    header = {"b": {**TENSOR, "shape": [], "data_offsets": [20, 24], "more": 1},
              "none": {**TENSOR, "shape": [0], "data_offsets": [20, 20]},
              "a": {**TENSOR, "shape": [5], "data_offsets": [0, 20]}}
    entries = read_entries(write(tmp_path / "odd.safetensors", header))
    assert {name: each.shape for name, each in entries.items()} == {"b": (), "none": (0,), "a": (5,)}
    assert entries["b"].tensor() == 0 and entries["none"].tensor().numel() == 0
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2, torch.int64, torch.uint8, torch.bool):
        tensor = torch.ones(3, 2).to(dtype)
        save_file({"x": tensor}, tmp_path / "plain.safetensors")
        stored = read_entries(tmp_path / "plain.safetensors")["x"].tensor()
        assert stored.dtype == dtype and stored.float().equal(tensor.float())


def test_a_file_that_shrinks_or_goes_after_its_header_was_read(tmp_path):
    path = write(tmp_path / "gone.safetensors", entry())
    tensor = read_entries(path)["a"]
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="'gone.safetensors' ends before a does"):
        tensor.tensor()
    path.unlink()
    with pytest.raises(UserError, match="'gone.safetensors' cannot be read any more"):
        tensor.tensor()


def test_gguf_files_are_named(tmp_path):
    """Whatever their ending is: people rename them, and some programs list them among the others."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + bytes(64))
    with pytest.raises(UserError, match="'model.safetensors' is a GGUF file.*bf16, fp16, fp8 or int8 .safetensors"):
        read_header(path)
    named = path.rename(tmp_path / "model.gguf")
    with pytest.raises(UserError, match="'model' is a GGUF file"):
        recognize(str(named), "model")
