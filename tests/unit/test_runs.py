"""Names of runs: found again by identity, never another's, free again after a run that failed at once."""
import json

import pytest
from finetune.trainers import spec as specs
from finetune.trainers.events import CancelledEvent, CheckpointEvent, FinishedEvent, StartedEvent, StepEvent
from finetune.trainers.files import place_copy
from finetune.trainers.process.parent import follow
from finetune.trainers.run_folder import open_run


@pytest.fixture
def opened(make_spec, tiny_bases):
    """Open the run of a learning rate: each is a run of its own."""
    def open_one(rate: float, name: str = "cat", taken=lambda name: False):
        return open_run(make_spec(tiny_bases["sd1"], name=name, optimizer=specs.OptimizerSpec(learning_rate=rate)), taken)
    return open_one


def happened(run, *events: dict):
    run.events_path.write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")


STARTED, FAILED = {"event": "started"}, {"event": "failed", "message": "no such layer"}


def test_a_run_that_failed_at_once_does_not_keep_its_name(opened):
    first = opened(1e-3)
    happened(first, STARTED, FAILED)
    first.log_path.write_text("Traceback")
    (first.folder / "previews").mkdir()
    second = opened(2e-3)
    assert second.folder == first.folder and not first.log_path.exists() and list(second.events()) == []
    assert opened(2e-3).folder == second.folder
    assert second.read_spec().optimizer.learning_rate == 2e-3


@pytest.mark.parametrize("kept", ["at work", "not ended", "a step", "a checkpoint", "a file", "somebody's file", "killed"])
def test_other_runs_keep_theirs(kept, opened):
    first = opened(1e-3)
    happened(first, STARTED, *([] if kept in ("not ended", "killed") else [{"event": "step", "step": 1, "loss": 0.5}]
                               if kept == "a step" else []), *([] if kept in ("not ended", "killed") else [FAILED]))
    if kept == "a checkpoint":
        first.save_state(1, {})
    if kept in ("a file", "somebody's file"):
        (first.folder / {"a file": "report.json", "somebody's file": "notes.txt"}[kept]).write_text("{}")
    lock = first.lock() if kept == "at work" else None
    before = sorted(path.name for path in first.folder.iterdir())
    try:
        assert opened(2e-3).name == "cat-2"
    finally:
        lock and lock.release()
    assert sorted(path.name for path in first.folder.iterdir()) == before and opened(1e-3).folder == first.folder


def test_a_run_and_its_file_have_one_name(opened):
    """Files of others have cat and cat-3: the runs are cat-2 and cat-4, and their files find these names free."""
    names = {"cat", "cat-3"}
    assert [opened(rate, taken=names.__contains__).name for rate in (1e-3, 2e-3, 1e-3)] == ["cat-2", "cat-4", "cat-2"]
    assert opened(2e-3, taken=lambda name: True).name == "cat-4", "a run that is there stays where it is"


def test_a_run_is_found_though_a_smaller_number_is_free(opened):
    first, second = opened(1e-3), opened(2e-3)
    (first.folder / "run.json").unlink()
    first.spec_path.unlink()
    first.folder.rmdir()
    assert opened(2e-3).folder == second.folder and opened(3e-3).folder == first.folder
    assert opened(1e-3, name="c.t").name == "c.t", "a dot is a dot"


def test_a_file_that_was_moved_to_another_folder_of_the_loaders_is_enough(tmp_path):
    for name in ("runs", "output", "models"):
        (tmp_path / name).mkdir()
    source, others = tmp_path / "runs" / "cat.safetensors", [tmp_path / "models"]
    source.write_bytes(b"a LoRA")
    placed = place_copy(source, tmp_path / "output", "cat", others)
    assert placed == tmp_path / "output" / "cat.safetensors"
    placed.rename(others[0] / "cat.safetensors")
    assert place_copy(source, tmp_path / "output", "cat", others) == others[0] / "cat.safetensors"
    (others[0] / "cat.safetensors").write_bytes(b"another")
    assert place_copy(source, tmp_path / "output", "cat", others) == tmp_path / "output" / "cat-2.safetensors"
    (tmp_path / "output" / "cat-2.safetensors").unlink()
    assert place_copy(source, tmp_path / "output", "cat", others).read_bytes() == b"a LoRA"


STEP = StepEvent(step=1, loss=0.5)


class Interrupt(Exception):
    pass


@pytest.mark.parametrize("raised_by", ["looking around", "the bar"])
def test_an_interrupt_is_shown_at_once_and_raised_when_the_worker_has_saved(raised_by):
    told, asked = [], []
    events = [None, StartedEvent(run="run"), STEP, STEP, CheckpointEvent(step=1), CancelledEvent()]

    def report(event):
        told.append(event.event)
        if raised_by == "the bar" and event.event == "step":
            raise Interrupt

    def look_around():
        if raised_by == "looking around" and "started" in told:  # people press twice
            raise Interrupt

    with pytest.raises(Interrupt):
        follow(events, lambda: asked.append(len(told)), report, look_around, Interrupt)
    assert [each for each in told if each != "step"] == ["started", "cancelling", "cancelled"] and len(asked) == 1


def test_without_an_interrupt_every_event_is_reported():
    told = []
    follow([STEP, None, FinishedEvent()], None, lambda event: told.append(event.event), lambda: None,
           Interrupt)
    assert told == ["step", "finished"]
