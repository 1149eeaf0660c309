"""The work around a captioner: nothing is described twice, cancelled and killed work goes on, a full memory is no end."""
import subprocess

import pytest
import torch
from finetune.trainers import optional_packages
from finetune.trainers import spec as specs
from finetune.trainers.captioning import work as working
from finetune.trainers.captioning.devices import choose_device, choose_dtype, is_out_of_memory
from finetune.trainers.captioning.work import Findings, open_folder, texts_of
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.events import Event, read_event
from finetune.trainers.process.parent import SCRIPT, TrainingProcess
from PIL import Image
from support import tiny_captioners as tiny
from support.captioning import ask, describe, work


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioners")
    return {name: tiny.MAKERS[name](root / name) for name in ("blip", "tagger")}


@pytest.fixture
def folder(tmp_path):
    tiny.make_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def asked(models, folder, tmp_path):
    """Build a spec; keyword arguments replace settings."""
    def build(name="blip", **parts):
        return ask(models[name], folder, tmp_path / "caches", batch_size=parts.pop("batch_size", 2), **parts)
    return build


def captioned(events) -> list[int]:
    return [event.done for event in events if event.event == "captioned"]


def by_name(spec) -> dict[str, str]:
    texts = texts_of(spec)
    return {image.name: texts[image.path] for image in spec.dataset.images if image.path in texts}


def test_every_image_is_described_once(asked, folder, monkeypatch):
    spec, images = asked(), [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    assert texts_of(spec) == {}
    events = work(spec)
    assert captioned(events) == [1, 2, 3, 4, 5]
    expected = describe(spec, images)
    assert list(by_name(spec).values()) == expected and len(set(expected)) >= 4
    assert [(event.caption, event.path) for event in events if event.event == "captioned"] == [
        (text, str(path)) for text, path in zip(expected, sorted(folder.iterdir()))]
    monkeypatch.setattr(working, "load", None)  # nothing may be loaded now
    assert work(spec) == [] and work(asked(batch_size=4)) == []
    assert by_name(asked(temperature=0, top_p=0.5, caption_seed=3)) == by_name(spec)  # they act on draws only


@pytest.mark.parametrize("change", [
    {"prompt": "a photo of"}, {"maximum_tokens": 3}, {"beams": 2}, {"repetition_penalty": 1.5}, {"temperature": 1.0},
    {"precision": "fp32"},
])
def test_other_settings_ask_anew(change, asked):
    work(asked())
    assert texts_of(asked(**change)) == {} and open_folder(asked(**change)).folder != open_folder(asked()).folder


def test_another_model_or_image_asks_anew(asked, folder, models, tmp_path):
    work(asked())
    Image.open(folder / "drawing_1.png").rotate(90).save(folder / "drawing_1.png")
    assert by_name(asked()).keys() == {f"drawing_{number}.png" for number in (0, 2, 3, 4)}
    assert captioned(work(asked())) == [1]
    (folder / "drawing_0.png").rename(folder / "renamed.png")
    assert by_name(asked()).keys() == {"renamed.png", *(f"drawing_{number}.png" for number in range(1, 5))}
    other = tiny.make_blip(tmp_path / "blip", seed=5)
    assert texts_of(ask(other, folder, tmp_path / "caches")) == {}


def test_new_thresholds_need_no_new_look(asked):
    work(asked("tagger"))
    few, many = (by_name(asked("tagger", general_threshold=value)) for value in (0.9, 0.1))
    assert few.keys() == many.keys() and len(few) == 5
    assert all(set(few[name].split(", ")) < set(many[name].split(", ")) for name in few if few[name])


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b'{"finding": 3}', b'{"finding": [["dog", "general"]]}', b'{"finding": [["dog", "general", "1"]]}'])
@pytest.mark.parametrize("name", ["blip", "tagger"])
def test_damaged_cache_files_are_made_anew(name, content, asked):
    spec = asked(name)
    work(spec)
    before, path = texts_of(spec), Findings(spec).path(spec.dataset.images[2])
    path.write_bytes(content)
    assert len(texts_of(spec)) == 4 and captioned(work(spec)) == [1] and texts_of(spec) == before


def test_cancelled_between_batches_it_keeps_what_is_described(asked):
    events, stop = [], iter([False, True])
    with pytest.raises(Cancelled):
        working.caption_images(asked(), events.append, stop_requested=lambda: next(stop))
    assert captioned(events) == [1, 2] and len(texts_of(asked())) == 2
    assert captioned(work(asked())) == [1, 2, 3] and len(texts_of(asked())) == 5


class Small:
    """A captioner in a small memory."""

    notes = ["it is slow"]

    def __init__(self, room: int, problem: Exception):
        self.room, self.problem, self.batches, self.closed = room, problem, [], False

    def describe(self, images):
        self.batches.append(len(images))
        if len(images) > self.room:
            raise self.problem
        return [f"{image.width} wide" for image in images]

    def close(self):
        self.closed = True


@pytest.mark.parametrize("problem", [
    torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("MPS backend out of memory"),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9")])
def test_a_full_memory_halves_the_batch(problem, asked, monkeypatch):
    small = Small(1, problem)
    monkeypatch.setattr(working, "load", lambda spec, device, dtype: small)
    events = work(asked(batch_size=4))
    assert small.batches == [4, 2, 1, 1, 1, 1, 1] and captioned(events) == [1, 2, 3, 4, 5] and small.closed
    notes = [event.text for event in events if event.event == "note"]
    assert notes[0] == "it is slow" and "too small for 4 images at once; going on with 2" in notes[1] and len(notes) == 3
    assert by_name(asked())["drawing_1.png"] == "64 wide"


def test_a_memory_too_small_for_one_image_is_a_failure(asked, monkeypatch):
    small = Small(0, torch.OutOfMemoryError("CUDA out of memory."))
    monkeypatch.setattr(working, "load", lambda spec, device, dtype: small)
    with pytest.raises(torch.OutOfMemoryError):
        work(asked())
    assert small.closed and small.batches == [2, 1]
    assert not is_out_of_memory(ValueError("wrong shape"))


def test_other_failures_are_not_tried_again(asked, monkeypatch):
    small = Small(1, ValueError("wrong shape"))
    monkeypatch.setattr(working, "load", lambda spec, device, dtype: small)
    with pytest.raises(ValueError):
        work(asked())
    assert small.batches == [2] and small.closed


def test_an_image_that_disappeared_is_named(asked, folder):
    spec = asked()
    (folder / "drawing_3.png").unlink()
    with pytest.raises(UserError, match=r"drawing_3\.png: the image cannot be read .* without it"):
        work(spec)
    assert len(texts_of(spec)) == 2  # the batch before it


def test_drawn_words_depend_on_seed_and_image_alone(asked):
    first = asked(temperature=1.5, caption_seed=1)
    state = torch.get_rng_state()
    work(first)
    assert torch.equal(state, torch.get_rng_state())
    once = by_name(first)
    one = first.dataset.images[3]
    Findings(first).path(one).unlink()
    torch.manual_seed(99)
    work(first)
    assert by_name(first) == once
    work(asked(temperature=1.5, caption_seed=2))
    assert by_name(asked(temperature=1.5, caption_seed=2)) != once


def follow(run, on_event=lambda process, event: None) -> list[Event]:
    seen = []
    with TrainingProcess(run) as process:
        for event in process.events():
            if event:
                seen.append(event)
                on_event(process, event)
    return seen


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_is_killed_and_goes_on(asked, folder):
    for number in range(200):  # so many that the worker is not done when the kill arrives
        Image.new("RGB", (64, 64), (number, 255 - number, 0)).save(folder / f"plain_{number}.png")
    spec = asked("tagger", batch_size=1)

    def kill(process, event):
        if event.event == "captioned":
            process.process.kill()

    last = follow(open_folder(spec), kill)[-1]
    assert last.event == "failed" and "captioning process was ended from outside (SIGKILL)" in last.message
    assert "captions that are there are kept" in last.message
    there = len(texts_of(spec))
    assert 1 <= there < 205
    assert follow(open_folder(spec))[-1].images == 205 - there
    assert len(texts_of(spec)) == 205


def test_the_command_line_describes_and_then_finds(asked, preloaded, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(asked("tagger").model_dump_json())
    command = [*preloaded, str(SCRIPT), "caption", str(path)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0 and '"finished"' in first.stdout, first.stderr
    events = [read_event(line) for line in first.stdout.splitlines()]
    second = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert second == [f"drawing_{number}.png: {event.caption}" for number, event in enumerate(
        event for event in events if event.event == "captioned")]


def test_without_onnxruntime_taggers_say_so_before_anything_else(asked, monkeypatch):
    find = optional_packages.find_spec
    monkeypatch.setattr(optional_packages, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(UserError) as problem:
        work(asked("tagger"))
    assert str(problem.value) == (
        "Tag Images needs the Python package onnxruntime, which is not installed. Install it with the Python that runs "
        "ComfyUI and start ComfyUI again, or use another captioner.")
    assert captioned(work(asked("blip"))) == [1, 2, 3, 4, 5]  # nobody else misses it


@pytest.mark.parametrize("name, change, words", [
    ("blip", {"beams": 2, "temperature": 0.5}, "beams is 2 and temperature 0.5"), ("blip", {"beams": 0}, "beams is 0"),
    ("blip", {"maximum_tokens": 0}, "maximum_tokens is 0"), ("blip", {"prompt": "x" * 501}, "prompt"),
    ("blip", {"batch_size": 0}, "batch_size is 0"), ("blip", {"top_p": 0}, "top_p is 0"),
    ("tagger", {"general_threshold": 0.01}, "general_threshold is 0.01"),
    ("tagger", {"general": False, "characters": False}, "general, characters and rating are all off"),
])
def test_wrong_values_are_sentences(name, change, words, asked):
    with pytest.raises(UserError, match=words):
        asked(name, **change)


def test_device_and_precision(asked, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert (choose_device("cpu").type, choose_device("auto").type) == ("cpu", "cuda")
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert choose_dtype("auto", torch.device("cpu")) == choose_dtype("fp32", torch.device("cuda")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16
    with pytest.raises(UserError, match="precision is fp16, which only runs on a graphics card"):
        work(asked(precision="fp16"))
    work(asked(precision="bf16"))
    assert len(texts_of(asked(precision="bf16"))) == 5


def test_an_instruction_must_say_something():
    from finetune.trainers.spec.captioning import VisionLanguageSpec

    with pytest.raises(UserError, match="the instruction is empty"):
        specs.checked(VisionLanguageSpec, instruction=" \n ")
