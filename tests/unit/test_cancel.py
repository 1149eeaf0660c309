"""Cancel is heard in every phase of every task, at once, and nothing that was learned is lost. Each phase is long by real
work: the worker that is cancelled in its midst would go on for minutes."""
import os
import shutil
import signal
import time

import pytest
from filelock import FileLock
from finetune.trainers import spec as specs
from finetune.trainers.caches.tensor_cache import CAPTIONS
from finetune.trainers.captioning import work as captioning
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.events import Event, ValidationEvent
from finetune.trainers.process import parent as running
from finetune.trainers.process.parent import TrainingProcess
from finetune.trainers.run_folder import open_run
from finetune.trainers.sampling import class_images
from finetune.trainers.spec.class_images import ClassImagesSpec
from finetune.trainers.tools.file_tasks import TOOLS
from support import tiny, tiny_captioners
from support.captioning import ask
from support.running import losses_of

MINUTES = dict(prompts=("a", "b"), sampler_steps=200, images=16)
"""Previews that take so long."""


def follow(run, when=lambda event: False, act=lambda process: process.cancel()) -> list[Event]:
    """The events of a worker to which something happens shortly after `when(event)` was true for the first time."""
    seen, waiting = [], True
    with TrainingProcess(run) as process:
        for event in process.events():
            if event:
                seen.append(event)
                if waiting and when(event):
                    waiting = False
                    time.sleep(0.2)
                    act(process)
    assert not waiting or seen[-1].event == "finished", seen[-3:]
    return seen


def cancelled(run, when) -> list[Event]:
    """The events of a worker that is cancelled, and answers by itself."""
    events = follow(run, when)
    assert events[-1].event == "cancelled" and not events[-1].message, events[-3:]
    assert "cancelling" in kinds(events)
    return events


def kinds(events) -> list[str]:
    return [event.event for event in events]


def is_kind(kind: str, **fields):
    return lambda event: event.event == kind and fields.items() <= dict(event).items()


@pytest.fixture(autouse=True)
def patience(monkeypatch, quick_workers):
    """A worker that does not hear is ended, and the test fails: it says so in a message."""
    monkeypatch.setattr(running, "PATIENCE", 30.0)


# ---- training: before there is anything to save --------------------------------------------------------------------

TRAINING = {
    "loading": (dict(), is_kind("started"), {"model"}),
    "waiting for another process": (dict(), is_kind("encoding", what="images"), {"model"}),
    "encoding": (dict(images=400), is_kind("encoding", what="images", done=2), {"model"}),
    "preview of the base": (dict(previews=specs.PreviewSpec(every=9, **MINUTES)), is_kind("model"), {"preview", "step"}),
    "validation": (dict(images=60, training=specs.TrainingSpec(steps=6, resolution=256),
                        validation=specs.ValidationSpec(fraction=0.5)), is_kind("model"), {"validation", "step"}),
    "a step": (dict(training=specs.TrainingSpec(steps=6, batch_size=4, accumulation=1000, resolution=64)),
               is_kind("model"), {"step"}),
}


@pytest.mark.parametrize("phase", TRAINING)
def test_a_run_that_has_learned_nothing_is_cancelled(phase, make_spec, tiny_bases, tmp_path):
    parts, when, not_reached = TRAINING[phase]
    images = parts.get("images", 4)
    dataset = scan_folder(str(tiny.make_images(tmp_path / "images", images)), "many")
    run = open_run(make_spec(tiny_bases["sd1"], dataset=dataset,
                             **{name: part for name, part in parts.items() if name != "images"}))
    caches = tmp_path / "caches" / CAPTIONS
    caches.mkdir(parents=True)
    lock = FileLock(caches / ".lock")
    if phase == "waiting for another process":
        lock.acquire()
    try:
        events = cancelled(run, when)
    finally:
        lock.release()
    assert not (not_reached | {"checkpoint"}) & set(kinds(events)) and events[-1].step == 0
    encoded = [event.done for event in events if event.event == "encoding" and event.what == "images"]
    assert phase != "encoding" or encoded[-1] < 200


# ---- training: what is learned ----------------------------------------------------------------------------------------

def test_what_is_learned_is_saved_in_the_midst_of_a_preview_which_is_made_good(make_spec, tiny_bases):
    parts = dict(training=specs.TrainingSpec(steps=60, batch_size=2, resolution=64),
                 validation=specs.ValidationSpec(fraction=0.25, every=20))
    expected, whole = losses_of(make_spec(tiny_bases["sd1"], name="whole", **parts))
    run = open_run(make_spec(tiny_bases["sd1"], **parts))
    begun = cancelled(run, is_kind("step"))[-1].step
    assert run.checkpoints() == [begun] and begun < 58
    # The run goes on with previews two steps later: first with such as take minutes, then with quick ones.
    due = begun + 2
    for previews in (dict(MINUTES), dict(prompts=("a",), sampler_steps=2)):
        spec = make_spec(tiny_bases["sd1"], **parts, previews=specs.PreviewSpec(every=due, **previews))
        run.spec_path.write_text(spec.model_dump_json(), encoding="utf-8")
        if previews == MINUTES:
            events = cancelled(run, is_kind("step", step=due))
            assert events[-1].step == due == run.checkpoints()[-1] and "preview" not in kinds(events)
            assert run.checkpoint_files(due)[0].name == f"run_step{due:06d}.safetensors"
    events = follow(run)
    assert kinds(events)[-1] == "finished" and run.losses() == expected and run.report.steps == 60
    shown = [(event.event, event.step) for event in events if event.event in ("resumed", "preview", "step")]
    assert shown[:3] == [("resumed", due), ("preview", due), ("step", due + 1)]
    assert run.report.validation == whole.report.validation and list(run.curve(ValidationEvent)) == [0, 20, 40, 60]


# ---- other tasks -----------------------------------------------------------------------------------------------------

def test_class_images_are_cancelled_between_steps_of_the_sampler(tiny_bases, tmp_path):
    spec = specs.checked(
        ClassImagesSpec, base=tiny_bases["sd1"], prompt="a dog", count=64, resolution=128, sampler_steps=200,
        batch_size=64, folders=specs.FolderSpec(runs=str(tmp_path), caches=str(tmp_path / "caches")), device="cpu")
    folder = class_images.open_folder(spec)
    events = cancelled(folder, is_kind("phase", text="generating the first images"))
    assert "class_images" not in kinds(events) and not list(class_images.images_of(folder).iterdir())


def test_captioning_is_cancelled_between_two_words(tmp_path):
    tiny_captioners.make_images(tmp_path / "images", 1)
    model = tiny_captioners.make_blip(tmp_path / "blip", positions=4096)
    spec = ask(model, tmp_path / "images", tmp_path / "caches", maximum_tokens=4000, beams=16)
    events = cancelled(captioning.open_folder(spec), is_kind("phase", text="describing the first images"))
    assert "captioned" not in kinds(events) and captioning.texts_of(spec) == {}


def test_an_export_is_cancelled_between_two_layers(tiny_bases, tmp_path):
    spec = TOOLS["onnx"].spec(name="made", base=tiny_bases["sdxl"].path, device="cpu",
                         folders=specs.FolderSpec(runs=str(tmp_path / "runs"), caches=str(tmp_path / "caches")))
    run = open_run(spec)
    events = cancelled(run, is_kind("phase", text="exporting"))
    assert "finished" not in kinds(events) and not list(run.folder.rglob("*.onnx*"))
    assert not list(run.folder.rglob(".part-*"))


# ---- workers that cannot answer, folders that disappear, leftovers -----------------------------------------------------

def test_a_worker_that_does_not_answer_is_ended_by_us_and_that_is_what_is_said(make_spec, tiny_bases, monkeypatch):
    monkeypatch.setattr(running, "PATIENCE", 1.0)
    monkeypatch.delenv(running.LAUNCHER)  # it is the worker itself that is stopped
    run = open_run(make_spec(tiny_bases["sd1"], checkpoints=specs.CheckpointSpec(every=1, keep=9),
                             training=specs.TrainingSpec(steps=1000, batch_size=2, resolution=64)))

    def stop_and_cancel(process):
        os.kill(process.process.pid, signal.SIGSTOP)
        process.cancel()

    last = follow(run, is_kind("step", step=2), stop_and_cancel)[-1]
    assert last.event == "cancelled" and last.step == run.checkpoints()[-1] >= 1
    assert "ended because it did not answer to cancel within 1 s" in last.message
    assert "memory" not in last.message and f"checkpoint of step {last.step}" in last.message


def test_a_run_whose_folder_is_deleted_ends_with_a_sentence(make_spec, tiny_bases):
    run = open_run(make_spec(tiny_bases["sd1"], training=specs.TrainingSpec(steps=1000, batch_size=2, resolution=64)))
    last = follow(run, is_kind("step", step=2), lambda process: shutil.rmtree(run.folder))[-1]
    assert last.event == "failed" and "was deleted or moved while it was worked on" in last.message
    assert not run.folder.exists()


def test_leftovers_of_a_killed_write_go_at_the_next_start_and_those_of_others_stay(make_spec, tiny_bases, tmp_path):
    run = open_run(make_spec(tiny_bases["sd1"], previews=specs.PreviewSpec(every=3, prompts=("a",), sampler_steps=2)))
    killed = follow(run, is_kind("phase", text="loading the denoiser"), lambda process: process.process.kill())
    entry = next((tmp_path / "caches" / CAPTIONS).glob("??/*.safetensors"))
    run.checkpoint_folder(3).mkdir(parents=True)
    run.take_over(tmp_path / "caches")  # as the killed process named what it wrote
    from finetune.trainers.files import mark_unfinished, temporary_beside

    with temporary_beside(entry) as temporary:
        own = entry.with_name(temporary.name)
    mark_unfinished("")
    others = [entry.with_name(".part-0a0a0a0a-live.safetensors"), entry.with_name(".part-x.safetensors")]
    mine = [own, run.checkpoint_folder(3) / ".part-y.pt", run.folder / ".part-z.json"]
    for path in (*mine, *others):
        path.write_bytes(b"half")
    (run.folder / ".part-folder").mkdir()
    finished = follow(run)
    assert finished[-1].event == "finished"
    assert not any(path.exists() for path in mine) and all(path.exists() for path in others)
    assert not list(run.folder.rglob(".part-*"))
    # One honest bar, from the start to the end.
    for events in (killed, finished):
        reached = [event.progress for event in events if event is not events[-1] or event.progress]
        assert reached == sorted(reached) and reached[0] == 0
    reached = {event.event + getattr(event, "text", ""): event.progress for event in killed[:-1]}
    assert 0 < reached["phaseloading the VAE"] < reached["phaseloading the text encoders"]
    assert reached["phaseloading the text encoders"] < reached["phaseloading the denoiser"] < 0.3
    reached = {event.event: event.progress for event in finished}
    assert 0.9 < reached["step"] < reached["finished"] == 1
