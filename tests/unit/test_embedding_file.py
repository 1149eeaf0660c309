"""Embedding files in all forms that people have, merging, and libraries of names."""
import json
import pickle
import re

import pytest
import torch
from finetune.trainers.artifacts.embedding import Embedding, load_embedding, merge, save_embedding
from finetune.trainers.artifacts.embedding_library import Entry, Library, read_library
from finetune.trainers.errors import UserError
from safetensors.torch import load_file, save_file


def vectors(count=2, width=768, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tensors, family", [
    ({"emb_params": vectors()}, "Stable Diffusion 1.x"),
    ({"emb_params": vectors(width=1024)}, "Stable Diffusion 2.x"),
    ({"clip_l": vectors(), "clip_g": vectors(width=1280)}, "Stable Diffusion XL"),
])
def test_a_written_file_is_read_as_it_was(tensors, family, tmp_path):
    path = tmp_path / "word.safetensors"
    save_embedding(path, tensors, "fp32", {"modelspec.trigger_phrase": "zorp", "ss_sd_model_name": "base"})
    embedding = load_embedding(path)
    assert load_file(path).keys() == tensors.keys()
    assert all(torch.equal(embedding.tensors[name], tensor) for name, tensor in tensors.items())
    assert (embedding.trigger, embedding.base, embedding.vectors, embedding.family) == ("zorp", "base", 2, family)


def a1111(value):
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": value}, "name": "word", "step": 100,
            "sd_checkpoint": None, "sd_checkpoint_name": None}


@pytest.mark.parametrize("content, suffix", [
    (a1111(vectors()), ".pt"),
    (a1111(torch.nn.Parameter(vectors())), ".pt"),
    ({"<word>": vectors()}, ".bin"),
    ({"<word>": vectors(1)[0]}, ".bin"),
], ids=["A1111", "A1111, as a parameter", "diffusers", "diffusers, one vector"])
def test_files_of_other_programs_are_read(content, suffix, tmp_path):
    torch.save(content, tmp_path / f"word{suffix}")
    embedding = load_embedding(tmp_path / f"word{suffix}")
    assert torch.equal(embedding.tensors["emb_params"], vectors()[:embedding.vectors])
    assert embedding.trigger == ""


def test_one_trainers_misspelled_key_is_read_as_the_host_reads_it(tmp_path):
    save_file({"emp_params": vectors(), "emp_params_out": vectors(seed=1)}, tmp_path / "word.safetensors")
    assert torch.equal(load_embedding(tmp_path / "word.safetensors").tensors["emb_params"], vectors())


def test_what_is_no_embedding_is_refused_by_name(tmp_path):
    save_file({"lora_unet_x.alpha": torch.ones(())}, tmp_path / "lora.safetensors")
    save_file({"weight": torch.ones(400, 8)}, tmp_path / "model.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"half a file")
    (tmp_path / "half.pt").write_bytes(b"half a file")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("lora.safetensors", "model.safetensors", "half.safetensors", "half.pt", "list.pt"):
        with pytest.raises(UserError, match=name):
            load_embedding(tmp_path / name)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save(a1111(Trap(str(tmp_path / "sprung"))), tmp_path / "trap.pt")
    (tmp_path / "bare.bin").write_bytes(pickle.dumps(Trap(str(tmp_path / "sprung"))))
    for name in ("trap.pt", "bare.bin"):
        with pytest.raises(UserError, match="cannot be read safely"):
            load_embedding(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_values_that_are_not_numbers_are_refused(tmp_path):
    with pytest.raises(UserError, match="not numbers in fp16"):
        save_embedding(tmp_path / "word.safetensors", {"emb_params": vectors() * 1e6}, "fp16", {})
    assert not list(tmp_path.iterdir())


# ---- merging -------------------------------------------------------------------------------------------------------

def test_a_merge_is_the_weighted_average():
    embeddings = [Embedding({"clip_l": vectors(seed=n), "clip_g": vectors(width=1280, seed=n)}) for n in range(3)]
    merged = merge(embeddings, [1.0, 2.0, -0.5], ["a", "b", "c"])
    for key in ("clip_l", "clip_g"):
        a, b, c = (each.tensors[key] for each in embeddings)
        assert torch.allclose(merged[key], 0.4 * a + 0.8 * b - 0.2 * c, atol=1e-6)
    same = merge(embeddings[:1] * 2, [0.3, 0.9], ["a", "a"])
    assert torch.allclose(same["clip_l"], embeddings[0].tensors["clip_l"], atol=1e-6)


@pytest.mark.parametrize("tensors, sentence", [
    ({"emb_params": vectors(3)}, "'a' has 2 vectors and 'b' has 3"),
    ({"emb_params": vectors(width=1024)}, "'a' is for Stable Diffusion 1.x and 'b' for Stable Diffusion 2.x"),
    ({"clip_l": vectors(), "clip_g": vectors(width=1280)}, "and 'b' for Stable Diffusion XL"),
])
def test_what_does_not_fit_is_not_merged(tensors, sentence):
    with pytest.raises(UserError, match=sentence):
        merge([Embedding({"emb_params": vectors()}), Embedding(tensors)], [1, 1], ["a", "b"])


def test_weights_that_cancel_are_refused():
    with pytest.raises(UserError, match="sum to 0"):
        merge([Embedding({"emb_params": vectors()})] * 2, [1, -1], ["a", "b"])


# ---- libraries -----------------------------------------------------------------------------------------------------

def library(**files):
    return Library(embeddings={name: Entry(file=file) for name, file in files.items()})


def test_a_library_is_read_as_it_was_written(tmp_path):
    written = Library(embeddings={"Möwe 2": Entry(file="birds/gull.pt", trigger="ohwx", base="SDXL", vectors=4)})
    (tmp_path / "a.json").write_text(written.text(), encoding="utf-8")
    assert read_library(tmp_path / "a.json") == written


def test_names_in_a_prompt_become_embeddings():
    words = library(ember="styles/ember.safetensors", **{"ember glow": "glow.pt", "c++": "cpp.safetensors"})

    def call(file):
        return f"embedding:{file.removesuffix('.safetensors')}"

    assert words.fill("an Ember, embers, ember-like; ember glow (ember:1.2)", call) == (
        "an embedding:styles/ember, embers, ember-like; embedding:glow.pt (embedding:styles/ember:1.2)")
    assert words.fill("embedding:styles/ember and embedding:ember", call) == "embedding:styles/ember and embedding:ember"


def test_names_are_looked_up_and_not_searched_for_one_after_the_other(monkeypatch):
    files = {f"word {number} of {'x' * (number % 60 + 1)}": f"{number}.pt" for number in range(20_000)}
    words = Library(embeddings={name: Entry(file=file) for name, file in files.items()})
    monkeypatch.setattr(re, "compile", lambda *_: pytest.fail("a pattern of 20,000 names"))
    for number in range(50):
        prompt = f"a WORD {number} of {'x' * (number % 60 + 1)}, word {number} of many, {{}} and word 1 of x-rays"
        assert words.fill(prompt, "embedding:{}".format) == (
            f"a embedding:{number}.pt, word {number} of many, {{}} and word 1 of x-rays")


def test_small_letters_and_the_place_of_an_entry():
    words = library(Ember="one.pt", ember="two.pt", fox="fox.pt", i="i.pt")
    assert words.fill("Ember ember EMBER İ i {}fox (fox)", str) == "one.pt two.pt two.pt İ i.pt {}fox (fox.pt)"
    assert words.fill("白いfox猫", str) == "白いfox.pt猫" and words.fill("x-fox", str) == "x-fox"
    assert words.fill("", str) == "" and words.fill("fox", str) == "fox.pt" and words.fill("fo", str) == "fo"


@pytest.mark.parametrize("file", [
    "../secret.pt", "a/../../secret.pt", "/etc/secret.pt", "C:\\secret.pt", "\\\\server\\secret.pt", "..\\secret.pt",
    "~/secret.pt", "C:secret.pt", "secret.txt", "", "a\x00.pt",
])
def test_files_outside_the_embeddings_folder_are_refused(file, tmp_path):
    content = {"format": "embedding library", "version": 1, "embeddings": {"word": {"file": file}}}
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="a.json cannot be used as an embedding library"):
        read_library(tmp_path / "a.json")


@pytest.mark.parametrize("content", [
    b"half a fi", b"[]", b'{"format": "workflow", "version": 1, "embeddings": {}}',
    b'{"format": "embedding library", "version": 2, "embeddings": {"a": {"file": "a.pt"}}}',
    b'{"format": "embedding library", "version": 1, "embeddings": {}}',
    b'{"format": "embedding library", "version": 1, "embeddings": {"../a": {"file": "a.pt"}}}',
    b'{"format": "embedding library", "version": 1, "embeddings": {"a\\nb": {"file": "a.pt"}}}',
    b'{"format": "embedding library", "version": 1, "embeddings": {"a": {"file": "a.pt", "run": "x"}}}',
    b" " * 5_000_000,
], ids=["half", "list", "other", "version", "empty", "path as name", "line in a name", "unknown field", "large"])
def test_what_is_no_library_is_refused(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json"):
        read_library(tmp_path / "a.json")


@pytest.mark.parametrize("content", [
    json.dumps({"embeddings": {f"word{number}": {"file": 7} for number in range(20_000)}}),
    json.dumps({"embeddings": {"a": {"file": "x" * 1_000_000}}}), "[" * 100_000,
    '{"embeddings": {"a": {"file": "a.pt", "vectors": NaN}}}', '{"embeddings": {"a": {"file": "a.pt", "vectors": 1e999}}}',
    '{"embeddings": null}', '{"embeddings": ["a.pt"]}', "\xff\xfe",
], ids=["thousands of problems", "long", "deep", "NaN", "infinite", "null", "list", "bytes"])
def test_what_is_wrong_with_a_library_is_said_in_a_few_lines(content, tmp_path):
    (tmp_path / "a.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json cannot be used") as refusal:
        read_library(tmp_path / "a.json")
    assert len(str(refusal.value)) < 12_000 and len(str(refusal.value).splitlines()) <= 21


def test_a_folder_that_is_called_like_a_library_is_refused(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match="a.json cannot be read"):
        read_library(tmp_path / "a.json")
