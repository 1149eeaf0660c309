"""Every captioner says what transformers or onnxruntime says when they are called directly, one image at a time."""
import contextlib
import json
import shutil
from functools import lru_cache

import numpy as np
import onnxruntime
import pytest
import torch
import transformers as hf
from finetune.trainers.captioning import load, text_of
from finetune.trainers.captioning.florence2 import answer, written
from finetune.trainers.captioning.model_folders import KINDS, inspect_folder, kind_of
from finetune.trainers.captioning.speaking import without_prompt
from finetune.trainers.captioning.vision_language import shrunk
from finetune.trainers.errors import UserError
from PIL import Image
from support import tiny_captioners as tiny
from support.captioning import ask, describe, work

SPEAKERS = ("blip", "blip2", "blip2_t5", "git", "florence2", "qwen2_vl", "llava")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny.make_captioners(tmp_path_factory.mktemp("captioners"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    tiny.make_images(root)
    return root


@pytest.fixture(scope="module")
def images(folder):
    return [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]


@lru_cache(maxsize=4)
def loaded(processor_class, model_class, folder):
    return processor_class.from_pretrained(folder), model_class.from_pretrained(folder).eval()


def directly(model, name, image, prompt="", task="<DETAILED_CAPTION>", **options) -> str:
    """One image, by the classes of transformers alone, as the documentation of each model does it."""
    folder, options = model, {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, **options}
    if name == "blip":
        processor, network = loaded(hf.BlipProcessor, hf.BlipForConditionalGeneration, folder)
        inputs = processor(image, prompt, return_tensors="pt") if prompt else processor(image, return_tensors="pt")
        return processor.decode(network.generate(**inputs, **options)[0], skip_special_tokens=True).strip()
    if name.startswith("blip2"):
        processor, network = loaded(hf.Blip2Processor, hf.Blip2ForConditionalGeneration, folder)
        inputs = processor(image, prompt or None, return_tensors="pt")
        text = processor.decode(network.generate(**inputs, **options)[0], skip_special_tokens=True).strip()
        return text.removeprefix(prompt).strip()
    if name == "git":
        processor, network = loaded(hf.GitProcessor, hf.GitForCausalLM, folder)
        inputs = {"pixel_values": processor(images=image, return_tensors="pt").pixel_values}
        if prompt:
            inputs["input_ids"] = processor.tokenizer("[CLS] " + prompt, add_special_tokens=False,
                                                      return_tensors="pt").input_ids
        return processor.decode(network.generate(**inputs, **options)[0], skip_special_tokens=True).strip()
    if name == "florence2":
        processor, network = loaded(hf.Florence2Processor, hf.Florence2ForConditionalGeneration, folder)
        inputs = processor(text=task, images=image, return_tensors="pt")
        text = processor.batch_decode(network.generate(**inputs, **options), skip_special_tokens=False)[0]
        found = processor.post_process_generation(text, task=task, image_size=image.size)[task]
        return found if isinstance(found, str) else found["labels"]
    processor, network = loaded(hf.AutoProcessor, hf.AutoModelForImageTextToText, folder)
    marker = "<image>" if name == "llava" else "<|vision_start|><|image_pad|><|vision_end|>"
    inputs = processor(text=f"user {marker} {prompt} a ", images=image, return_tensors="pt")
    tokens = network.generate(**inputs, **options)[0, inputs.input_ids.shape[1]:]
    return processor.decode(tokens, skip_special_tokens=True).strip()


def prompted(name: str) -> dict:
    return {"prompt": "a photo of the dog"} if name in ("qwen2_vl", "llava") else {}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", SPEAKERS)
def test_they_say_what_transformers_says(name, beams, models, folder, images, tmp_path):
    spec = ask(models[name], folder, tmp_path, beams=beams)
    expected = [directly(models[name], name, image, num_beams=beams, **prompted(name)) for image in images]
    assert describe(spec, images) == expected
    assert describe(spec, images[3:4]) == expected[3:4]
    assert len(set(expected)) >= 3 and sum(map(bool, expected)) >= 4  # the images matter


@pytest.mark.parametrize("name", ["blip", "blip2", "blip2_t5", "git"])
def test_with_a_prompt_they_go_on_from_it(name, models, folder, images, tmp_path):
    prompt = "a photo of"
    said = describe(ask(models[name], folder, tmp_path, prompt=f" {prompt} "), images)
    assert said == [directly(models[name], name, image, prompt) for image in images]
    assert said != describe(ask(models[name], folder, tmp_path), images)
    assert all(text.startswith(prompt) == (name in ("blip", "git")) for text in said)


@pytest.mark.parametrize("name", SPEAKERS)
def test_decoding_settings_reach_the_model(name, models, folder, images, tmp_path):
    spec = ask(models[name], folder, tmp_path, maximum_tokens=5, repetition_penalty=1.8)
    expected = [directly(models[name], name, image, max_new_tokens=5, repetition_penalty=1.8, **prompted(name))
                for image in images]
    assert describe(spec, images) == expected != describe(ask(models[name], folder, tmp_path), images)


@pytest.mark.parametrize("name, prompt", [
    ("blip", None), ("blip", "a photo of"), ("blip2", None), ("blip2", "a photo of"), ("git", None), ("git", "a photo of"),
    ("florence2", None)])
def test_no_more_is_asked_for_than_a_model_has_positions(name, prompt, models, folder, tmp_path):
    """Beyond the end of its table of positions a model raises an IndexError, at a far place."""
    asked = {"prompt": prompt} if prompt else {}
    events = work(ask(models[name], folder, tmp_path / "caches", maximum_tokens=4096, **asked))
    notes = [event.text for event in events if event.event == "note"]
    assert len(notes) == 1 and "fewer than the 4096 of maximum_tokens" in notes[0]
    assert len([event for event in events if event.event == "captioned"]) == len(list(folder.iterdir()))


@pytest.mark.parametrize("name", SPEAKERS)
def test_they_run_in_the_precision_of_graphics_cards(name, models, folder, images, tmp_path):
    spec = ask(models[name], folder, tmp_path)
    captioner = load(spec, torch.device("cpu"), torch.bfloat16)
    assert captioner.model.dtype == torch.bfloat16
    assert len([text for text in captioner.describe(images) if text]) >= 4
    captioner.close()
    assert not hasattr(captioner, "model")


@pytest.mark.parametrize("instruction, task", [
    ("caption", "<CAPTION>"), ("more detailed caption", "<MORE_DETAILED_CAPTION>"), ("objects", "<OD>"),
    ("text in the image", "<OCR>"),
])
def test_florence_does_its_tasks(instruction, task, models, folder, images, tmp_path):
    said = describe(ask(models["florence2"], folder, tmp_path, instruction=instruction), images)
    expected = [directly(models["florence2"], "florence2", image, task=task) for image in images]
    assert said == [", ".join(dict.fromkeys(each)) if task == "<OD>" else each for each in expected] and any(said)


def test_florence_names_every_object_once(models, folder, images, tmp_path):
    florence = load(ask(models["florence2"], folder, tmp_path, instruction="objects"), torch.device("cpu"), torch.float32)
    box = "<loc_1><loc_2><loc_30><loc_31>"
    raw = f"</s><s>dog{box}{box}red hat{box}dog{box}</s><pad><pad>"
    assert written(answer(florence, raw, "<OD>", images[0])) == "dog, red hat"
    assert written(answer(florence, "</s><s>a dog</s><pad>", "<CAPTION>", images[0])) == "a dog"


def test_prompts_of_different_lengths_are_padded_in_front(models, folder, images, tmp_path):
    """Qwen2-VL's images have different numbers of tokens. Padded behind, an answer would follow the padding."""
    captioner = load(ask(models["qwen2_vl"], folder, tmp_path), torch.device("cpu"), torch.float32)
    expected = captioner.describe(images)
    captioner.processor.tokenizer.padding_side = "right"
    assert captioner.describe(images) != expected


def test_a_conversation_may_begin_with_a_system_text_and_large_images_are_shrunk(models, folder, images, tmp_path):
    plain = describe(ask(models["llava"], folder, tmp_path), images)
    assert describe(ask(models["llava"], folder, tmp_path, system="the red house"), images) != plain
    sizes = {(48, 64): (24, 32), (64, 64): (32, 32), (80, 64): (32, 26)}
    half = [image.resize(sizes[image.size], Image.Resampling.LANCZOS) for image in images]
    small = ask(models["qwen2_vl"], folder, tmp_path, maximum_side=32)
    expected = [directly(models["qwen2_vl"], "qwen2_vl", image, **prompted("qwen2_vl")) for image in half]
    assert describe(small, images) == expected != describe(ask(models["qwen2_vl"], folder, tmp_path), images)
    assert shrunk(images[0], 0) is images[0] and shrunk(Image.new("RGB", (3000, 2)), 100).size == (100, 1)


def test_what_a_model_thought_is_no_caption(models, folder, images, tmp_path, monkeypatch):
    captioner = load(ask(models["llava"], folder, tmp_path), torch.device("cpu"), torch.float32)
    monkeypatch.setattr(captioner, "decode", lambda tokens: ["<think>a cat?</think>\n\nA dog.", " a dog"])
    assert captioner.describe(images[:2]) == ["A dog.", "a dog"]


def test_a_template_without_a_place_for_images_is_refused(models, folder, images, tmp_path):
    model = shutil.copytree(models["llava"], tmp_path / "llava")
    (model / "chat_template.jinja").write_text("{% for each in messages %}{{ each['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="leaves no place for an image"):
        describe(ask(model, folder, tmp_path), images)


def test_only_a_repeated_prompt_is_cut():
    prompt = torch.tensor([[1, 2], [3, 4]])
    assert without_prompt(torch.tensor([[1, 2, 5], [3, 4, 6]]), prompt).tolist() == [[5], [6]]
    assert without_prompt(torch.tensor([[1, 7, 5], [3, 4, 6]]), prompt).tolist() == [[1, 7, 5], [3, 4, 6]]


# ---- taggers -------------------------------------------------------------------------------------------------------

def probabilities(model, image, deepdanbooru=False) -> np.ndarray:
    """By onnxruntime, with the preparation written down once more."""
    side = 32
    if deepdanbooru:
        scale = side / max(image.size)
        small = np.asarray(image.resize([round(length * scale) for length in image.size], Image.Resampling.BOX))
        rows, columns = (np.clip(np.arange(side) - (side - length) // 2, 0, length - 1) for length in small.shape[:2])
        pixels = (small[rows][:, columns] / 255).astype(np.float32)
    else:
        longest = max(image.size)
        canvas = np.full((longest, longest, 3), 255, np.uint8)
        left, top = (longest - image.width) // 2, (longest - image.height) // 2
        canvas[top:top + image.height, left:left + image.width] = np.asarray(image)
        resized = np.asarray(Image.fromarray(canvas).resize((side, side), Image.Resampling.BICUBIC))
        pixels = np.stack([resized[..., 2], resized[..., 1], resized[..., 0]], axis=-1).astype(np.float32)
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels[None]})[0][0]


@pytest.mark.parametrize("name", ["tagger", "tagger_one", "deepdanbooru"])
def test_taggers_say_what_onnxruntime_says(name, models, folder, images, tmp_path):
    images = [*images, images[1].rotate(90, expand=True)]
    spec = ask(models[name], folder, tmp_path, general_threshold=0.5, character_threshold=0.8)
    found = describe(spec, images)
    texts = [text_of(spec.model, finding) for finding in found]
    for image, finding, text in zip(images, found, texts, strict=True):
        expected = probabilities(models[name], image, name == "deepdanbooru")
        there = {tag: probability for tag, _, probability in finding}
        for (tag, category), probability in zip(tiny.TAGS, expected, strict=True):
            tag = f"rating:{tag}" if category == "rating" and name == "deepdanbooru" else tag
            assert there.get(tag, 0) == pytest.approx(probability, abs=1e-5 if probability >= 0.02 else 0.02)
        wanted = [(category != "character", -probability, tag) for (tag, category), probability in zip(tiny.TAGS, expected)
                  if category != "rating" and probability >= (0.8 if category == "character" else 0.5)]
        assert text == ", ".join(tag if tag in ("^_^", "|_|") else tag.replace("_", " ") for _, _, tag in sorted(wanted))
    assert len(set(texts)) == len(images)
    assert [text_of(spec.model, finding) for image in images for finding in describe(spec, [image])] == texts


def test_a_fixed_number_of_images_is_filled_up(folder, images, models, tmp_path):
    three = tiny.make_tagger(tmp_path / "tagger", batch=3)
    said = describe(ask(three, folder, tmp_path), images)
    assert len(said) == 5 and said == describe(ask(models["tagger"], folder, tmp_path), images)


FOUND = [["general", "rating", 0.2], ["explicit", "rating", 0.7], ["saber_(fate)", "character", 0.9],
         ["link", "character", 0.86], ["long_hair", "general", 0.95], ["^_^", "general", 0.4], ["smile", "general", 0.35],
         ["blue_eyes", "general", 0.349], ["1girl", "general", 0.99], ["some_artist", "other", 1.0]]


@pytest.mark.parametrize("settings, text", [
    ({}, "saber (fate), link, 1girl, long hair, ^_^, smile"),
    ({"general_threshold": 0.349}, "saber (fate), link, 1girl, long hair, ^_^, smile, blue eyes"),
    ({"general_threshold": 0.9, "character_threshold": 0.87}, "saber (fate), 1girl, long hair"),
    ({"characters": False}, "1girl, long hair, ^_^, smile"), ({"general": False}, "saber (fate), link"),
    ({"rating": True, "characters": False, "general_threshold": 0.97}, "1girl, rating:explicit"),
    ({"general": False, "characters": False, "rating": True}, "rating:explicit"),
    ({"underscores": True, "general_threshold": 0.9}, "saber_(fate), link, 1girl, long_hair"),
    ({"escape": True, "general": False}, r"saber \(fate\), link"),
    ({"exclude": ("Long hair", "SMILE", r"saber_\(fate\)", "unknown")}, "link, 1girl, ^_^"),
    ({"order": "probability"}, "1girl, long hair, saber (fate), link, ^_^, smile"),
    ({"order": "alphabet"}, "1girl, ^_^, link, long hair, saber (fate), smile"),
    ({"most": 3}, "saber (fate), 1girl, long hair"),
])
def test_tags_are_chosen_and_written_as_asked(settings, text, models, folder, tmp_path):
    assert text_of(ask(models["tagger"], folder, tmp_path, **settings).model, FOUND) == text


def test_a_tagger_that_does_not_fit_together_is_refused(folder, images, tmp_path):
    logits = tiny.make_tagger(tmp_path / "a" / "tagger", probabilities=False)
    with pytest.raises(UserError, match="no probabilities"):
        describe(ask(logits, folder, tmp_path), images)
    other = tiny.make_tagger(tmp_path / "b" / "tagger", tags=tiny.TAGS[:-2])
    shutil.copy(logits / "model.onnx", other)
    with pytest.raises(UserError, match="knows 22 tags, and its list names 20"):
        describe(ask(other, folder, tmp_path), images)
    (other / "selected_tags.csv").write_text("no,such\ncolumns,here\n")
    with pytest.raises(UserError, match="list of tags of 'tagger' cannot be read"):
        describe(ask(other, folder, tmp_path), images)
    (logits / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="could not be loaded as a tagger"):
        describe(ask(logits, folder, tmp_path), images)


# ---- folders -------------------------------------------------------------------------------------------------------

def test_kinds_are_told_from_their_small_files(models, tmp_path):
    assert {name: kind_of(folder) for name, folder in models.items()} == {
        name: tiny.KINDS.get(name, name) for name in models}
    (tmp_path / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')
    assert kind_of(tmp_path) is None and kind_of(tmp_path / "nowhere") is None
    (tmp_path / "config.json").write_text('{"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}')
    assert kind_of(tmp_path) is None


@pytest.fixture
def copy(models, tmp_path):
    def of(name):
        return shutil.copytree(models[name], tmp_path / name)
    return of


def rewrite(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("name, damage, words", [
    ("blip", lambda folder: (folder / "config.json").unlink(), "is no BLIP model: its config.json is missing"),
    ("blip", lambda folder: (folder / "config.json").write_text("{"), "is no BLIP model"),
    ("blip", lambda folder: (folder / "model.safetensors").unlink(), "has no weights: model.safetensors is missing"),
    ("blip", lambda folder: (folder / "processor_config.json").unlink(), "preprocessor_config.json is missing"),
    ("blip", lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    ("git", lambda folder: rewrite(folder / "config.json", model_type="blip"), "is a BLIP model, and this node reads GIT"),
    ("blip2", lambda folder: (folder / "model.safetensors").rename(folder / "part.safetensors") and (
        folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part.safetensors", "b": "lost.st"}}'),
     "is incomplete: lost.st is missing, one of 2 files"),
    ("blip2", lambda folder: (folder / "model.safetensors").unlink() or (
        folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": null, "b": ["x"]}}'),
     "is incomplete: None is missing"),
    ("blip2", lambda folder: (folder / "model.safetensors").unlink() or (
        folder / "model.safetensors.index.json").write_text('{"weight_map": []}'),
     "is incomplete: model.safetensors is missing"),
    ("blip", lambda folder: rewrite(folder / "config.json", model_type=["blip"], architectures=3), "is no BLIP model"),
    ("blip", lambda folder: (folder / "config.json").write_text("[" * 100_000), "is no BLIP model"),
    ("blip", lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "is not a safetensors file"),
    ("florence2", lambda folder: rewrite(folder / "config.json", vision_config=[]) or (
        folder / "tokenizer.json").unlink(), "has no tokenizer"),
    ("florence2", lambda folder: rewrite(folder / "config.json", vision_config={"model_type": "davit"}),
     "Microsoft's first layout"),
    ("llava", lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template"),
    ("tagger", lambda folder: (folder / "selected_tags.csv").unlink(), "is no tagger: it needs model.onnx and"),
])
def test_incomplete_folders_are_sentences_before_anything_is_loaded(name, damage, words, copy):
    folder = copy(name)
    damage(folder)
    with pytest.raises(UserError, match=words):
        inspect_folder(tiny.KINDS.get(name, name), folder, name)


def test_every_kind_says_where_models_come_from(tmp_path):
    for kind, known in KINDS.items():
        with pytest.raises(UserError) as problem:
            inspect_folder(kind, tmp_path, "empty")
        assert known.models in str(problem.value) and "models/captioners" in str(problem.value)


def test_a_changed_file_changes_the_fingerprint(copy):
    folder = copy("blip")
    before = inspect_folder("blip", folder, "blip").fingerprint
    assert inspect_folder("blip", folder, "other name").fingerprint == before
    tiny.make_blip(folder, seed=9)
    assert inspect_folder("blip", folder, "blip").fingerprint != before


@pytest.mark.parametrize("damage, words", [
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 100), "is not a safetensors file, or is damaged"),
    (lambda folder: rewrite(folder / "config.json", text_config={"vocab_size": 7}), "could not be loaded|lack"),
    (lambda folder: drop_half(folder / "model.safetensors"), "lack \\d+ tensors of a BLIP model, for example"),
])
def test_files_that_make_no_model_are_sentences(damage, words, copy, folder, images, tmp_path):
    model = copy("blip")
    damage(model)
    with pytest.raises(UserError, match=words):
        describe(ask(model, folder, tmp_path), images)


def drop_half(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file(dict(list(tensors.items())[::2]), path, metadata={"format": "pt"})


class Code:
    """What a pickle may do when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_old_weight_files_are_read_as_tensors_only(copy, models, folder, images, tmp_path):
    from safetensors.torch import load_file

    model = copy("blip")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(weights, model / "pytorch_model.bin")
    assert describe(ask(model, folder, tmp_path), images) == describe(ask(models["blip"], folder, tmp_path), images)
    torch.save({**weights, "more": Code(tmp_path / "ran")}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded as a BLIP model"):
        describe(ask(model, folder, tmp_path), images)
    assert not (tmp_path / "ran").exists()


def test_no_code_of_a_folder_runs(copy, folder, images, tmp_path):
    model = copy("llava")
    (model / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    rewrite(model / "config.json", model_type="mine", auto_map={
        "AutoConfig": "mine.Config", "AutoModelForImageTextToText": "mine.Model"})
    rewrite(model / "processor_config.json", auto_map={"AutoProcessor": "mine.Processor"})
    with pytest.raises(UserError, match="type 'mine', which transformers .* does not know"):
        describe(ask(model, folder, tmp_path), images)
    rewrite(model / "config.json", model_type="llava")
    with contextlib.suppress(UserError):
        describe(ask(model, folder, tmp_path), images)
    assert not (tmp_path / "ran").exists()
