"""Embeddings and hypernetworks that other programs wrote, or that are made to do harm."""
import struct
import zipfile

import pytest
import torch
from finetune.trainers.artifacts.embedding import load_embedding, merge, save_embedding
from finetune.trainers.artifacts.embedding_words import ENCODERS, choose
from finetune.trainers.artifacts.hypernetwork import read_hypernetwork
from finetune.trainers.artifacts.torch_files import is_dense
from finetune.trainers.errors import UserError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

ONE, XL, FLUX = "Stable Diffusion 1.x", "Stable Diffusion XL", "Flux"


def vectors(count=2, width=768, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def stored(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


LEFT, RIGHT, T5 = vectors(), vectors(width=1280, seed=1), vectors(width=4096, seed=2)


@pytest.mark.parametrize("name, content, family, tensors, note", [
    ("pti.safetensors", {"text_encoders_0": LEFT, "text_encoders_1": RIGHT}, XL, {"clip_l": LEFT, "clip_g": RIGHT},
     "do not find text_encoders_1, because they look for clip_g"),
    ("pti.pt", {"text_encoders_0": LEFT, "text_encoders_1": T5}, FLUX, {"clip_l": LEFT, "t5xxl": T5}, "text_encoders_1"),
    ("one_trainer.safetensors", {"clip_g": LEFT, "t5": T5}, FLUX, {"clip_l": LEFT, "t5xxl": T5}, "do not find t5"),
    ("named.safetensors", {"t": vectors(3), "clip_l": LEFT}, ONE, {"emb_params": LEFT}, "t is not used"),
    ("own_name.pt", {"text_encoders_0": vectors(3), "clip_l": LEFT}, ONE, {"emb_params": LEFT}, "text_encoders_0 is not"),
    ("sd3.safetensors", {"clip_l": LEFT, "clip_g": RIGHT, "t5xxl": T5}, "Stable Diffusion 3",
     {"clip_l": LEFT, "clip_g": RIGHT, "t5xxl": T5}, ""),
    ("outputs.safetensors", {"clip_l": LEFT, "clip_g": RIGHT, "clip_l_out": vectors(3), "clip_g_out": vectors(3, 1280)}, XL,
     {"clip_l": LEFT, "clip_g": RIGHT}, "clip_g_out, clip_l_out are not used"),
    ("xl.pt", {"clip_l": LEFT, "clip_g": RIGHT}, XL, {"clip_l": LEFT, "clip_g": RIGHT}, ""),
    ("list.pt", [{"<w>": LEFT}, {"<w>": RIGHT}], XL, {"clip_l": LEFT, "clip_g": RIGHT}, ""),
    ("half.bin", {"<w>": RIGHT}, "the larger text encoder of Stable Diffusion XL alone", {"clip_g": RIGHT}, ""),
    ("left.safetensors", {"clip_l": LEFT}, ONE, {"emb_params": LEFT}, ""),
    ("bf16.safetensors", {"emb_params": LEFT.bfloat16()}, ONE, {"emb_params": LEFT.bfloat16().float()}, ""),
    ("strided.pt", {"<w>": torch.cat([LEFT, LEFT])[::2]}, ONE, {"emb_params": torch.cat([LEFT, LEFT])[::2]}, ""),
    ("packed.safetensors", {"bundle_emb.w.clip_l": LEFT, "bundle_emb.w.clip_g": RIGHT, "lora_te_x.alpha": torch.ones(())},
     XL, {"clip_l": LEFT, "clip_g": RIGHT}, "lora_te_x.alpha is not used"),
    ("packed.pt", {"bundle_emb.a.string_to_param.*": LEFT, "bundle_emb.b.string_to_param.*": LEFT[:1]}, ONE,
     {"emb_params": torch.cat([LEFT, LEFT[:1]])}, "packs the words a, b"),
    ("pivotal.safetensors", {"<s1>": LEFT[1], "<s0>": LEFT[0]}, ONE, {"emb_params": LEFT},
     "<s0>, <s1> are read as one word of 2 vectors; ComfyUI itself reads only <s0>"),
    ("pivotal.bin", {"<s1>": LEFT[1], "<s0>": LEFT[0]}, ONE, {"emb_params": LEFT}, "ComfyUI itself reads only <s1>"),
    ("numbered.bin", {"<w>": LEFT[0], "<w>_1": LEFT[1]}, ONE, {"emb_params": LEFT}, "one word of 2 vectors"),
    ("two.bin", {"<cat>": LEFT[0], "<dog>": LEFT[1]}, ONE, {"emb_params": LEFT[:1]},
     "holds 2 words, <cat>, <dog>; only <cat> is read"),
    ("two.pt", {"string_to_token": {"*": 265, "@": 287}, "string_to_param": {"*": LEFT[:1], "@": LEFT[1:]}}, ONE,
     {"emb_params": LEFT[:1]}, "holds 2 words, *, @; only * is read"),
    ("step.safetensors", {"emb_params": LEFT, "step": torch.tensor([500])}, ONE, {"emb_params": LEFT}, "step is not used"),
    ("ids.pt", {"*": LEFT, "ids": torch.ones(2, 768, dtype=torch.int64)}, ONE, {"emb_params": LEFT}, "ids is not used"),
    ("trainer.pt", {"emb_params": LEFT, "optimizer": torch.ones(99, 3)}, ONE, {"emb_params": LEFT}, "optimizer is not used"),
    ("with_lora.safetensors", {"<s0>": LEFT[0], "text_encoder:0:up": torch.ones(320, 4)}, ONE, {"emb_params": LEFT[:1]},
     "text_encoder:0:up is not used"),
])
def test_words_are_read_as_what_they_are(name, content, family, tensors, note, tmp_path):
    found = load_embedding(stored(tmp_path / name, content))
    assert found.family == family and found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[encoder], tensor) for encoder, tensor in tensors.items())
    assert note in "; ".join(found.notes) and bool(note) == bool(found.notes)
    save_embedding(tmp_path / "again.safetensors", merge([found, found], [1, 1], ["a", "b"]), "fp32", {})
    again = load_embedding(tmp_path / "again.safetensors")
    assert again.notes == () and again.vectors == found.vectors


def test_words_that_are_too_long_together_are_refused():
    with pytest.raises(UserError, match="'long.pt' is no embedding"):
        choose({"0: <w>": (40, 768), "1: <w>": (40, 768)}, "long.pt", joined=True)
    assert choose({"<s0>": (40, 768), "<s1>": (40, 768)}, "long.pt").tensors == {"emb_params": ("<s0>",)}


def test_words_of_other_models_are_not_merged(tmp_path):
    pti = load_embedding(stored(tmp_path / "pti.safetensors", {"text_encoders_0": LEFT, "text_encoders_1": RIGHT}))
    one = load_embedding(stored(tmp_path / "one.safetensors", {"emb_params": LEFT}))
    with pytest.raises(UserError, match="'pti' is for Stable Diffusion XL and 'one' for Stable Diffusion 1.x"):
        merge([pti, one], [1, 1], ["pti", "one"])


NAMES = st.text(max_size=6) | st.sampled_from([
    *ENCODERS, "emb_params", "*", "<s0>", "<s1>", "<cat>", "<cat>_1", "clip_l_out", "x.alpha", "bundle_emb.b.clip_l",
    "bundle_emb.a.string_to_param.*", "bundle_emb.b.clip_g"])
SHAPES = st.lists(st.sampled_from([0, 1, 2, 40, 75, 76, 320, 768, 1024, 1280, 4096, 1 << 40]), max_size=3).map(tuple)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.dictionaries(NAMES, SHAPES, max_size=6), st.booleans())
def test_any_names_and_shapes_are_a_word_or_a_sentence(shapes, joined):
    try:
        choice = choose(shapes, "a.pt", joined)
    except UserError as refusal:
        assert str(refusal).startswith("'a.pt' is no embedding")
        return
    used = [name for names in choice.tensors.values() for name in names]
    assert used and len(used) == len(set(used)) and set(used) <= shapes.keys()
    for names in choice.tensors.values():
        assert len({shapes[name][-1] for name in names}) == 1
        assert 1 <= sum(len(torch.empty(shapes[name], device="meta").reshape(-1, shapes[name][-1])) for name in names) <= 75
    assert choice.notes or len(used) == len(shapes)


def test_names_out_of_a_file_are_short_plain_text():
    notes = choose({"a": (768,), "b\x1b[31m\n<script>" + "x" * 900: (768,)}, "file").notes
    assert "\x1b" not in notes[0] and "\n" not in notes[0] and len(notes[0]) < 200


@pytest.mark.parametrize("words, last", [({"*": LEFT}, LEFT), ({"*": LEFT, "@": LEFT[:1]}, LEFT[:1])])
def test_the_original_repositorys_files_are_read_as_the_host_reads_them(words, last, tmp_path):
    content = torch.nn.ParameterDict({word: torch.nn.Parameter(value.clone()) for word, value in words.items()})
    path = stored(tmp_path / "word.pt", {"string_to_token": {"*": 265}, "string_to_param": content})
    found = load_embedding(path)
    assert torch.equal(found.tensors["emb_params"], last)
    assert ("it holds 2 words, of which the last is read, as in ComfyUI" in found.notes) == (len(words) > 1)


def test_numbered_vectors_are_in_the_order_of_their_numbers():
    names = [f"<s{number}>" for number in (10, 2, 0, 11, 1, 9, 3, 8, 4, 7, 5, 6)]
    choice = choose({name: (768,) for name in names}, "word.safetensors")
    assert list(choice.tensors.values()) == [tuple(f"<s{number}>" for number in range(12))]


# ---- made to do harm -----------------------------------------------------------------------------------------------

def quantized():
    return torch.quantize_per_tensor(LEFT, 0.1, 0, torch.qint8)


ODD = {
    "empty": lambda: torch.zeros(0), "no vectors": lambda: torch.zeros(0, 768), "zero width": lambda: torch.zeros(2, 0),
    "scalar": lambda: torch.ones(()), "three dimensions": lambda: torch.ones(1, 2, 768), "long": lambda: torch.ones(76, 768),
    "complex": lambda: torch.complex(LEFT, LEFT), "whole numbers": lambda: torch.ones(2, 768, dtype=torch.int64),
    "sparse": lambda: LEFT.to_sparse(), "sparse rows": lambda: LEFT.to_sparse_csr(), "quantized": quantized,
    "meta": lambda: torch.empty(2, 768, device="meta"), "endless": lambda: torch.zeros(1).expand(1 << 60),
    "endless rows": lambda: torch.zeros(1).expand(2, 1 << 59), "nested": lambda: {"*": LEFT}, "list": lambda: [LEFT],
    "number": lambda: 3.0, "nothing": lambda: None,
}


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 2020"])
@pytest.mark.parametrize("kind", ODD)
def test_odd_tensors_are_refused_by_name(kind, old, tmp_path):
    for number, content in enumerate([{"*": ODD[kind]()}, {"string_to_param": {"*": ODD[kind]()}}, [{"*": ODD[kind]()}]]):
        path = tmp_path / f"odd{number}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(UserError, match=f"'{path.name}'"):
            load_embedding(path)
    torch.save({768: ({"linear.0.weight": ODD[kind]()},) * 2}, tmp_path / "net.pt", _use_new_zipfile_serialization=not old)
    if kind != "long":
        with pytest.raises(UserError, match=r"'net\.pt'"):
            read_hypernetwork(tmp_path / "net.pt")


@pytest.mark.parametrize("kind", sorted(ODD.keys() - {"long", "whole numbers", "endless rows"}))
def test_only_ordinary_tensors_are_looked_into(kind):
    assert is_dense(LEFT, (1, 2)) and not is_dense(ODD[kind](), (2,))


def archive(path, description, compression=zipfile.ZIP_STORED, **parts):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in {"data.pkl": description, "version": b"3\n", **parts}.items():
            file.writestr(f"word/{name}", data)
    return path


def pickled(size: int, shape: tuple[int, int], key: bytes = b"0") -> bytes:
    """{"a": a float32 tensor of this shape over a storage that claims `size` numbers}, as torch describes it."""
    def number(value):
        return b"\x8a\x08" + struct.pack("<q", value)

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu") + number(size) + b"tQ"
    shapes = b"K\x00" + number(shape[0]) + number(shape[1]) + b"\x86" + number(shape[1]) + b"K\x01\x86\x89"
    return (b"\x80\x02}" + text(b"a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shapes
            + b"ccollections\nOrderedDict\n)RtRs.")


def bytes_of(path, builtin: bytes, argument: bytes):
    return archive(path, b"\x80\x02}X\x01\x00\x00\x00ac" + builtin + b"\n(" + argument + b"tRs.")


HARMFUL = {
    "bomb": lambda path: archive(path, pickled(1536, (2, 768)), zipfile.ZIP_DEFLATED, **{"data/0": bytes(50_000_000)}),
    "described bomb": lambda path: archive(path, b"\x80\x02" + b"N0" * 20_000_000, zipfile.ZIP_DEFLATED),
    "long description": lambda path: archive(path, b"\x80\x02" + b"N0" * 2_000_000 + b"N."),
    "huge storage": lambda path: archive(path, pickled(1 << 50, (1 << 49, 2)), **{"data/0": bytes(6144)}),
    "beyond the file": lambda path: archive(path, pickled(1536, (70, 16_000)), **{"data/0": bytes(6144)}),
    "negative storage": lambda path: archive(path, pickled(-1536, (2, 768)), **{"data/0": bytes(6144)}),
    "missing storage": lambda path: archive(path, pickled(1536, (2, 768), b"7")),
    "bytes out of nothing": lambda path: bytes_of(path, b"builtins\nbytearray", b"\x8a\x05\0\0\0\0\x04"),
    "text that doubles": lambda path: bytes_of(path, b"_codecs\nencode", b"X\x01\x00\x00\x00aX\x03\x00\x00\x00hex"),
    "deep": lambda path: archive(path, b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."),
    "old and large": lambda path: path.write_bytes(b"\x80\x02" + bytes(5_000_000)),
    "no directory": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(1000)),
    "empty": lambda path: path.write_bytes(b""),
    "tar": lambda path: path.write_bytes(b"tensors".ljust(100, b"\0") + bytes(157) + b"ustar\x0000" + bytes(10_000)),
    "text": lambda path: path.write_bytes(b"<html>not found</html>"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_files_that_are_made_to_do_harm_get_a_sentence(kind, tmp_path, monkeypatch):
    HARMFUL[kind](tmp_path / "word.pt")
    for read in (load_embedding, read_hypernetwork):
        with pytest.raises(UserError, match=r"'word\.pt'") as refusal:
            read(tmp_path / "word.pt")
        assert "\x1b" not in str(refusal.value) and "torch.load" not in str(refusal.value)


def test_bombs_are_refused_before_they_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, part: pytest.fail(f"{part} was unpacked"))
    for kind in ("bomb", "described bomb", "long description", "old and large"):
        HARMFUL[kind](tmp_path / f"{kind}.pt")
        with pytest.raises(UserError, match=f"'{kind}.pt'"):
            load_embedding(tmp_path / f"{kind}.pt")
    monkeypatch.undo()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    for kind in ("bytes out of nothing", "text that doubles"):
        HARMFUL[kind](tmp_path / f"{kind}.pt")
        with pytest.raises(UserError, match=f"'{kind}.pt'"):
            load_embedding(tmp_path / f"{kind}.pt")


def test_the_description_that_the_harmful_files_vary_is_one_that_is_read(tmp_path):
    data = LEFT.numpy().tobytes()
    assert torch.equal(load_embedding(archive(tmp_path / "a.pt", pickled(1536, (2, 768)), **{"data/0": data}))
                       .tensors["emb_params"], LEFT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_are_named_with_their_file(value, tmp_path):
    broken = LEFT.clone()
    broken[1, 5] = value
    original = torch.nn.ParameterDict({"*": torch.nn.Parameter(broken)})
    for name, content, tensor in (
            ("a.safetensors", {"clip_l": LEFT, "clip_g": broken}, "clip_g"), ("b.pt", {"<w>": broken}, "<w>"),
            ("c.bin", {"<w>": broken.half()}, "<w>"), ("d.pt", {"string_to_param": original}, "word")):
        with pytest.raises(UserError, match=f"{tensor} holds values that are not numbers in '{name}'"):
            load_embedding(stored(tmp_path / name, content))
    state = {"linear.0.weight": LEFT, "linear.0.bias": broken[1]}
    torch.save({768: ({"linear.0.weight": LEFT}, state)}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="linear.0.bias for the values of width 768 holds values that are not numbers"):
        read_hypernetwork(tmp_path / "net.pt")
