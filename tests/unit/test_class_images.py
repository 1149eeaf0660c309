"""Class images: drawn as diffusers draws them, added to and never made twice, whole after every kind of end."""
import json
import subprocess

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from finetune.trainers import randomness
from finetune.trainers import spec as specs
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.events import Event, FinishedEvent, silent
from finetune.trainers.process.parent import SCRIPT, TrainingProcess
from finetune.trainers.run_folder import open_run
from finetune.trainers.sampling.class_images import class_dataset, images_of, make_class_images, open_folder
from finetune.trainers.spec.class_images import ClassImagesSpec
from finetune.trainers.training.run import train_run
from PIL import Image


@pytest.fixture
def asked(tiny_bases, tmp_path):
    """Build a spec; keyword arguments replace its parts."""
    def build(family="sd1", **parts):
        fields = dict(
            base=tiny_bases[family], prompt="a photo of a dog", count=4, resolution=64, sampler_steps=3, batch_size=2,
            folders=specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "caches")), device="cpu")
        return specs.checked(ClassImagesSpec, **{**fields, **parts})
    return build


def draw(spec, **arguments):
    """(dataset, how many were done after each batch)."""
    seen = []
    dataset = make_class_images(
        spec, lambda event: seen.append(event.done) if event.event == "class_images" else None, **arguments)
    return dataset, seen


def content(spec) -> dict[str, tuple]:
    """What lies in the images' folder: names → (bytes, time of writing)."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in images_of(open_folder(spec)).iterdir()}


def test_more_images_are_the_old_ones_and_the_missing_ones(asked):
    four, seen = draw(asked())
    before = content(asked())
    assert seen == [2, 4] and [image.name for image in four.images] == [f"0000{n}.png" for n in range(4)]
    assert {image.caption for image in four.images} == {"a photo of a dog"} and len(before) == 8
    assert len({image.digest for image in four.images}) == 4  # each from noise of its own
    seven, seen = draw(asked(count=7))
    assert seen == [6, 7] and seven.images[:4] == four.images and len(seven.images) == 7
    assert before.items() <= content(asked()).items()
    again, seen = draw(asked(batch_size=3))
    assert seen == [] and again == four == class_dataset(asked())


def test_an_image_does_not_depend_on_those_drawn_with_it(asked, tmp_path):
    elsewhere = specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "other"))
    one, two = asked(batch_size=1), asked(batch_size=4, folders=elsewhere)
    for first, second in zip(draw(one)[0].images, draw(two)[0].images, strict=True):
        assert np.abs(pixels(first.path) - pixels(second.path)).max() <= 1  # rounding


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path), np.int16)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_images_are_what_diffusers_draws(family, asked, tiny_bases):
    spec = asked(family, count=2, negative="a cat", guidance=5.0, sampler_steps=6, image_seed=11)
    dataset, _ = draw(spec)
    pipeline_class = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipeline = pipeline_class.from_pretrained(tiny_bases[family].path, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=2)
    for number, image in enumerate(dataset.images):
        noise = torch.randn((4, 8, 8), generator=randomness.generator(11, randomness.CLASS_IMAGES, number))
        drawn = pipeline("a photo of a dog", negative_prompt="a cat", guidance_scale=5.0, num_inference_steps=6,
                         height=64, width=64, latents=noise[None]).images[0]
        assert np.abs(pixels(image.path) - np.asarray(drawn, np.int16)).max() <= 1
        assert pixels(image.path).std() > 1


@pytest.mark.parametrize("change", [
    {"prompt": "a photo of a cat"}, {"negative": "blurred"}, {"sampler_steps": 4}, {"guidance": 3.0}, {"image_seed": 1},
    {"resolution": 128}, {"family": "sd2"},
])
def test_whatever_changes_the_images_has_a_folder_of_its_own(change, asked):
    assert open_folder(asked(**change)).folder != open_folder(asked()).folder


@pytest.mark.parametrize("change", [{"count": 9}, {"batch_size": 1}, {"device": "auto"}, {"prompt": " a photo\nof a dog "}])
def test_what_does_not_change_them_has_not(change, asked):
    assert open_folder(asked(**change)).folder == open_folder(asked()).folder


def test_damaged_and_missing_images_are_drawn_anew_and_captions_are_peoples_own(asked):
    dataset, _ = draw(asked())
    before = content(asked())
    folder = images_of(open_folder(asked()))
    (folder / "00001.png").write_bytes(b"half an image")
    (folder / "00002.png").unlink()
    (folder / "00003.txt").write_text("a photo of a small dog")
    (folder / ".part-left.png").write_bytes(b"of a killed process")
    assert class_dataset(asked()) is None
    again, seen = draw(asked())
    assert seen == [4] and [image.digest for image in again.images] == [each.digest for each in dataset.images]
    assert again.images[3].caption == "a photo of a small dog"
    assert content(asked()).keys() == before.keys()


def test_cancelled_between_batches_it_keeps_what_is_drawn(asked):
    count = iter(range(10))
    with pytest.raises(Cancelled):
        draw(asked(count=6), stop_requested=lambda: next(count) == 1)
    assert len(list(images_of(open_folder(asked())).glob("*.png"))) == 2
    assert draw(asked(count=6))[1] == [4, 6]


def follow(folder, on_event=lambda process, event: None) -> list[Event]:
    seen = []
    with TrainingProcess(folder) as process:
        for event in process.events():
            if event:
                seen.append(event)
                on_event(process, event)
    return seen


@pytest.mark.usefixtures("quick_workers")
def test_a_worker_is_killed_and_cancelled_and_goes_on(asked):
    spec = asked(count=40, batch_size=1)
    folder = open_folder(spec)

    def kill(process, event):
        if event.event == "class_images":
            process.process.kill()

    last = follow(folder, kill)[-1]
    assert last.event == "failed" and "sampling process was ended from outside (SIGKILL)" in last.message
    assert "images that are there are kept" in last.message
    for path in images_of(folder).glob("[0-9]*.png"):
        assert Image.open(path).convert("RGB").size == (64, 64) and path.with_suffix(".txt").exists()
    events = follow(folder, lambda process, event: process.cancel() if event.event == "class_images" else None)
    first = next(event for event in events if event.event == "class_images")
    assert events[-1].event == "cancelled" and 2 <= first.done < 40 and first.total == 40
    assert first.path.endswith(".png") and events[0].event == "started"
    finished = follow(open_folder(spec.model_copy(update={"count": 8})))[-1]
    assert finished == FinishedEvent(images=8, progress=1.0, time=finished.time)


def test_the_command_line_draws_and_then_finds(asked, preloaded, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(asked(count=2).model_dump_json())
    command = [*preloaded, str(SCRIPT), "class-images", str(path)]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0 and '"finished"' in first.stdout, first.stderr
    assert "all 2 images are there" in subprocess.run(command, capture_output=True, text=True).stdout
    path.write_text(json.dumps({**json.loads(path.read_text()), "count": 0}))
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 1 and "count is 0" in wrong.stderr


@pytest.mark.parametrize("change, words", [
    ({"prompt": " \n"}, "prompt is empty"), ({"count": 0}, "count is 0"), ({"resolution": 65}, "resolution is 65"),
    ({"guidance": float("nan")}, "guidance"), ({"image_seed": -1}, "image_seed"), ({"prompt": "x" * 3000}, "prompt"),
])
def test_wrong_values_are_sentences(change, words, asked):
    with pytest.raises(UserError, match=words):
        asked(**change)


@pytest.mark.parametrize("prompt", ["../../evil", "/etc/passwd", "日本の犬", "...", "a" * 500, 'dog: "x" | <y> \\ \x00'])
def test_hostile_prompts_stay_in_the_folder(prompt, asked, tmp_path):
    folder = open_folder(asked(prompt=prompt)).folder
    assert folder.parent == tmp_path / "caches" / "class_images" and folder.is_dir() and len(folder.name) < 64


def test_they_serve_as_the_prior_of_a_training(asked, make_spec, tiny_bases):
    dataset, _ = draw(asked())
    spec = make_spec(tiny_bases["sd1"], prior=specs.PriorSpec(dataset=dataset))
    report = train_run(spec, open_run(spec), silent)
    assert report.steps == 6
