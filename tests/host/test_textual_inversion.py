"""Learned words in a real ComfyUI: trained by the node, called by prompts, merged, kept in libraries."""
import json
import re

import pytest
import torch
from finetune.trainers import families
from finetune.trainers.artifacts.embedding import load_embedding
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.recognition import recognize
from host_server import NodeFailed, PromptRejected
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.graphs import training_node

NOT_THERE = "is not there|not in list"
"""Newer hosts compare choices with their lists themselves."""


def word_training(node="FineTuneTrainTextualInversion", **widgets) -> dict:
    """Demo base + example dataset → a new word for the "noto" of its captions ("train")."""
    return training_node(node, **{"name": "word", "placeholder_token": "noto", "vectors": 3, "initializer_text": "",
                                  "steps": 4, "learning_rate": 0.02, **widgets})


def pivotal_training(**widgets) -> dict:
    return word_training("FineTuneTrainPivotal", **{
        "name": "pivot", "embedding_learning_rate": 0.02, "learning_rate": 0.01, "rank": 2, "alpha": 2.0,
        "text_encoder_learning_rate": 0.01, "file_precision": "fp32", **widgets})


def one_call(model: list, clip: list, text, name: str) -> dict:
    """One Euler step from pure noise without guidance: what is saved is one denoising call."""
    return {
        f"{name} text": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}},
        f"{name} latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        f"{name} sample": {"class_type": "KSampler", "inputs": {
            "model": model, "positive": [f"{name} text", 0], "negative": [f"{name} text", 0],
            "latent_image": [f"{name} latent", 0], "seed": 7, "steps": 1, "cfg": 1.0, "sampler_name": "euler",
            "scheduler": "normal", "denoise": 1.0}},
        f"{name} save": {"class_type": "SaveLatent", "inputs": {
            "samples": [f"{name} sample", 0], "filename_prefix": name}},
    }


def saved_latents(host, name: str) -> torch.Tensor:
    return load_file(next(host.output.glob(f"{name}_*.latent")))["latent_tensor"]


def engine_latents(host, hidden, lora=None) -> torch.Tensor:
    """The same call by the engine: x₀ = √(1 + σ²) ε − σ ε̂(ε, last timestep), in the VAE's scale."""
    base = recognize(str(host.environment.root / "demo_base"), "demo_base")
    family = families.get("sd1")
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
    final = family.alphas_cumprod(base)[-1]
    sigma = ((1 - final) / final).sqrt()
    denoiser = family.load_denoiser(base, torch.float32)
    for name, module in denoiser.named_modules():
        key = family.denoiser_key(denoiser, name)
        if lora and f"{key}.alpha" in lora:
            add_change(module, lora, key)
    with torch.no_grad():
        predicted = family.predict(denoiser, noise, torch.tensor([999]), Conditioning({"hidden": hidden}))
    return (noise * (1 + sigma**2).sqrt() - sigma * predicted) / family.latent_format(base).scale


def add_change(module, lora: dict, key: str):
    down, up = lora[f"{key}.lora_down.weight"], lora[f"{key}.lora_up.weight"]
    change = lora[f"{key}.alpha"] / len(down) * (up.flatten(1) @ down.flatten(1))
    module.weight.data += change.reshape(module.weight.shape)


def engine_hidden(host, file, lora=None) -> torch.Tensor:
    """The engine's encoding of "… emoji of a lion" with the vectors of the file in front."""
    from finetune.trainers.methods.protocol import Parts
    from finetune.trainers.methods.textual_inversion import TextualInversion
    from finetune.trainers.spec import TextualInversionSpec

    base = recognize(str(host.environment.root / "demo_base"), "demo_base")
    family, vectors = families.get("sd1"), load_embedding(file).tensors["emb_params"]
    text = family.load_text(base, torch.float32)
    for name, module in text.encoders["te"].named_modules():
        key = family.text_key("te", name)
        if lora and f"{key}.alpha" in lora:
            add_change(module, lora, key)
    method = TextualInversion(TextualInversionSpec(token="zorp", vectors=len(vectors)), 1)
    method.attach(Parts(family, None, text, base), 0)
    with torch.no_grad():
        method.words["te"].vectors.copy_(vectors)
        return family.encode_captions(text, ["zorp emoji of a lion"])["hidden"]


def relative(one, other) -> float:
    return float((one - other).abs().max() / one.abs().max())


def test_the_word_does_in_the_host_what_it_did_in_training(host):
    prompt = word_training(name="telling")
    prompt["words"] = {"class_type": "StringConcatenate", "inputs": {
        "string_a": ["train", 2], "string_b": "emoji of a lion", "delimiter": " "}}
    prompt |= one_call(["demo", 0], ["demo", 1], ["words", 0], "word")
    prompt |= one_call(["demo", 0], ["demo", 1], "noto emoji of a lion", "plain")
    outputs = host.run(prompt)
    file = host.base_directory / "models" / "embeddings" / "telling.safetensors"
    with safe_open(file, framework="pt") as opened:
        assert list(opened.keys()) == ["emb_params"]
        assert opened.get_tensor("emb_params").shape == (3, 128)
        assert str(host.base_directory) not in json.dumps(opened.metadata())
        assert opened.metadata()["modelspec.trigger_phrase"] == "noto"
    ours, theirs = engine_latents(host, engine_hidden(host, file)), saved_latents(host, "word")
    assert relative(ours, theirs) < 1e-4
    assert relative(ours, saved_latents(host, "plain")) > 1e-2
    summary = outputs["train"]["text"][0]
    assert "embedding:telling calls the word in a prompt; ComfyUI loads all of it; its effect is not zero." in summary
    assert "It stands for 'noto' in the captions and takes 3 places of a prompt." in summary
    assert "does not exist" not in host.log.read_text(encoding="utf-8", errors="replace")


def test_word_and_lora_do_in_the_host_what_they_did_in_training(host):
    prompt = pivotal_training()
    prompt["lora"] = {"class_type": "LoraLoader", "inputs": {
        "model": ["demo", 0], "clip": ["demo", 1], "lora_name": ["train", 1], "strength_model": 1.0, "strength_clip": 1.0}}
    prompt["words"] = {"class_type": "StringConcatenate", "inputs": {
        "string_a": ["train", 3], "string_b": "emoji of a lion", "delimiter": " "}}
    prompt |= one_call(["lora", 0], ["lora", 1], ["words", 0], "both")
    prompt |= one_call(["demo", 0], ["demo", 1], ["words", 0], "word alone")
    outputs = host.run(prompt)
    lora = load_file(host.output / "loras" / "pivot.safetensors")
    assert any(key.startswith("lora_te_") for key in lora)
    hidden = engine_hidden(host, host.base_directory / "models" / "embeddings" / "pivot.safetensors", lora)
    ours = engine_latents(host, hidden, lora)
    assert relative(ours, saved_latents(host, "both")) < 1e-4
    assert relative(ours, saved_latents(host, "word alone")) > 1e-2
    assert outputs["train"]["lora"] == ["pivot.safetensors"]
    assert "embedding:pivot calls the word in a prompt; use both together" in outputs["train"]["text"][0]


# ---- merging and libraries -----------------------------------------------------------------------------------------

def embeddings_folder(host):
    return host.base_directory / "models" / "embeddings"


@pytest.fixture(scope="module")
def words(host):
    """Three words of two vectors and one of another model in the embeddings folder."""
    folder = embeddings_folder(host)
    (folder / "styles").mkdir(parents=True, exist_ok=True)
    tensors = {name: torch.full((2, 768), value) for name, value in (("one", 1.0), ("two", 2.0), ("four", 4.0))}
    for name, tensor in tensors.items():
        save_file({"emb_params": tensor}, folder / f"{name}.safetensors", {"modelspec.trigger_phrase": f"the_{name}"})
    torch.save({"string_to_param": {"*": torch.full((2, 768), 3.0)}}, folder / "styles" / "three.pt")
    save_file({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, folder / "xl.safetensors")
    return folder


def merging(name="merged", **rows) -> dict:
    inputs = {"name": name}
    for row in range(1, 5):
        inputs |= {f"embedding_{row}": "none", f"weight_{row}": 1.0}
    return {"class_type": "FineTuneMergeEmbeddings", "inputs": {**inputs, **rows}}


def shown(host, prompt: dict, node: str, *slots: int) -> list[list[str]]:
    """The texts at outputs of a node."""
    views = {f"show {slot}": {"class_type": "PreviewAny", "inputs": {"source": [node, slot]}} for slot in slots}
    outputs = host.run({**prompt, **views})
    return [outputs[view]["text"] for view in views]


def sentence(host, prompt) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as problem:
        host.run(prompt)
    assert host.is_running()
    return str(problem.value)


def test_a_merge_is_a_file_over_nothing(host, words):
    first = merging(embedding_1="one.safetensors", weight_1=1.0, embedding_3="styles/three.pt", weight_3=3.0)
    prompt = {"a": first, "b": merging("again", connected_1=["a", 0], embedding_4="four.safetensors", weight_4=1.0)}
    [name, call], = [list(texts) for texts in zip(*shown(host, prompt, "a", 1, 2))]
    assert (name, call) == ("merged", "embedding:merged")
    assert torch.allclose(load_embedding(words / "merged.safetensors").tensors["emb_params"], torch.tensor(2.5))
    assert torch.allclose(load_embedding(words / "again.safetensors").tensors["emb_params"], torch.tensor(3.25))
    assert load_embedding(words / "again.safetensors").trigger == "the_one + the_four"
    other = merging(embedding_1="one.safetensors", embedding_2="two.safetensors")
    (words / "styles" / "merged-2.safetensors").write_bytes(b"prompts would find this one too")
    assert shown(host, {"a": other}, "a", 1) == [["merged-3"]]
    (words / "styles" / "merged-2.safetensors").unlink()
    assert torch.allclose(load_embedding(words / "merged.safetensors").tensors["emb_params"], torch.tensor(2.5))


@pytest.mark.parametrize("rows, words_", [
    ({"embedding_1": "one.safetensors"}, "at least two embeddings"),
    ({"embedding_1": "one.safetensors", "embedding_2": "xl.safetensors"}, "is for Stable Diffusion 1.x"),
    ({"embedding_1": "one.safetensors", "embedding_2": "two.safetensors", "weight_2": -1.0}, "sum to 0"),
    ({"embedding_1": "one.safetensors", "embedding_2": "../../secret.pt"}, NOT_THERE),
    ({"name": "../evil", "embedding_1": "one.safetensors", "embedding_2": "two.safetensors"}, "name is '../evil'"),
    ({"name": "two words", "embedding_1": "one.safetensors", "embedding_2": "two.safetensors"}, "cannot call a name"),
])
def test_merges_that_cannot_be(host, words, rows, words_):
    assert re.search(words_, sentence(host, {"a": merging(**rows)}))


def test_a_library_from_saving_to_prompts(host, words):
    lines = "one\nsilver fox = styles/three.pt\ntwo.safetensors"
    save = {"class_type": "FineTuneSaveEmbeddingLibrary", "inputs": {"library_name": "mine", "embeddings": lines}}
    [[saved], [text]] = shown(host, {"save": save}, "save", 0, 1)
    assert saved == "mine"
    assert text.splitlines()[1] == "silver fox: embedding:styles/three.pt, 2 vectors, Stable Diffusion 1.x"
    content = json.loads((words / "libraries" / "mine.json").read_text(encoding="utf-8"))
    assert content["embeddings"]["one"] == {
        "file": "one.safetensors", "trigger": "the_one", "base": "Stable Diffusion 1.x", "vectors": 2}
    (words / "two.safetensors").rename(words / "away.safetensors")
    load = {"class_type": "FineTuneLoadEmbeddingLibrary", "inputs": {
        "library": "mine", "entry": "", "text": "{} and a Silver Fox, one day"}}
    [prompt, trigger, every, text] = shown(host, {"load": load}, "load", 0, 2, 3, 4)
    assert prompt == ["embedding:one and a embedding:styles/three.pt, embedding:one day"]
    assert trigger == ["the_one"]
    assert every[0].startswith("embedding:one and") and every[1].startswith("embedding:styles/three.pt and")
    assert len(every) == 2
    assert text[0].splitlines()[2].endswith("MISSING: put two.safetensors into models/embeddings")
    load["inputs"]["entry"] = "two"
    view = {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}}
    assert "'two.safetensors' of 'two' is missing" in sentence(host, {"load": load, "show": view})
    load["inputs"]["entry"] = "five"
    assert "has no entry 'five'. It has: one, silver fox, two" in sentence(host, {"load": load, "show": view})
    (words / "away.safetensors").rename(words / "two.safetensors")


def test_libraries_that_lead_elsewhere_are_refused(host, words):
    (words / "libraries").mkdir(exist_ok=True)
    outside = words.parent / "secret.safetensors"
    save_file({"emb_params": torch.zeros(1, 768)}, outside)
    for name, file in (("up", "../secret.safetensors"), ("absolute", str(outside))):
        (words / "libraries" / f"{name}.json").write_text(json.dumps({
            "format": "embedding library", "version": 1, "embeddings": {"secret": {"file": file}}}), encoding="utf-8")
    view = {"class_type": "PreviewAny", "inputs": {"source": ["load", 0]}}
    for name, said in (("up", "no file inside the embeddings folder"), ("absolute", "no file inside the embeddings folder"),
                       ("../../secret", NOT_THERE)):
        load = {"class_type": "FineTuneLoadEmbeddingLibrary", "inputs": {"library": name, "entry": "", "text": "{}"}}
        assert re.search(said, sentence(host, {"load": load, "show": view}))
    for name, entries, said in (("../evil", "one", "name is '../evil'"), ("fine", "../secret", "not there"),
                                ("fine", "nobody", "'nobody' is not there"), ("fine", "a\nb = a", "not there"),
                                ("fine", "one\none = two", "Two embeddings are called 'one'")):
        save = {"class_type": "FineTuneSaveEmbeddingLibrary", "inputs": {"library_name": name, "embeddings": entries}}
        assert said in sentence(host, {"save": save})
    assert not list(words.parent.rglob("evil*"))


@pytest.mark.parametrize("widgets, said", [
    ({"placeholder_token": "zorp"}, "No caption contains the word 'zorp'"), ({"placeholder_token": ""}, "token is empty"),
    ({"placeholder_token": "two words"}, "cannot be a placeholder word"), ({"name": "two words"}, "Write 'two_words'"),
    ({"vectors": 75}, "for which no caption has room"),
])
def test_words_that_cannot_be_learned(host, widgets, said):
    assert said in sentence(host, word_training(**{"name": "refused", **widgets}))
