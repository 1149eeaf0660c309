"""The worker process: killed, cancelled, orphaned and failing, it loses nothing and says what happened."""
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.events import Event
from finetune.trainers.process.parent import SCRIPT, TrainingProcess, thread_settings
from finetune.trainers.run_folder import open_run
from safetensors.torch import load_file
from support.running import losses_of

STEPS = 14


def small(make_spec, base, **parts):
    training = specs.TrainingSpec(steps=STEPS, batch_size=2, resolution=64)
    return make_spec(base, training=training, checkpoints=specs.CheckpointSpec(every=2), **parts)


def follow(run, on_event=lambda process, event: None) -> list[Event]:
    """All events of a worker process."""
    seen = []
    with TrainingProcess(run) as process:
        for event in process.events():
            if event:
                seen.append(event)
                on_event(process, event)
    return seen


@pytest.mark.usefixtures("quick_workers")
def test_killed_three_times_the_losses_are_bit_for_bit_those_of_an_unbroken_run(tiny_bases, make_spec, tmp_path):
    unbroken = open_run(small(make_spec, tiny_bases["sd1"]))
    assert follow(unbroken)[-1].event == "finished"
    spec = small(make_spec, tiny_bases["sd1"], folders=specs.FolderSpec(
        runs=str(tmp_path / "killed"), caches=str(tmp_path / "caches")))
    run = open_run(spec)
    kills = sorted(random.Random(7).sample(range(1, STEPS - 1), 3))
    for step in kills:
        def kill(process, event, step=step):
            if event.event == "step" and event.step >= step:
                process.process.kill()

        last = follow(run, kill)[-1]
        assert last.event == "failed" and "SIGKILL" in last.message and "ueue again" in last.message
    assert follow(run)[-1].event == "finished"
    assert run.losses() == unbroken.losses() and len(run.losses()) == STEPS, f"killed at {kills}"
    one, other = load_file(run.artifact), load_file(unbroken.artifact)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("family", families.NAMES)
def test_cancel_saves_a_checkpoint_and_a_file(family, tiny_bases, make_spec):
    """One worker for each family; what it saved is gone on with in this process."""
    spec = small(make_spec, tiny_bases[family])
    run = open_run(spec)

    def cancel(process, event):
        if event.event == "step" and event.step == 3:
            process.cancel()

    events = follow(run, cancel)
    last = events[-1]
    assert last.event == "cancelled" and 3 <= last.step < STEPS
    assert list(run.checkpoint_folder(last.step).glob("*.safetensors"))
    assert run.report is None
    begun, (going_on, _) = run.losses(), losses_of(spec)
    assert len(begun) == last.step and len(begun) + len(going_on) == STEPS and run.report is not None


def test_a_worker_whose_parent_dies_saves_and_ends(tiny_bases, make_spec):
    run = open_run(small(make_spec, tiny_bases["sd1"]))
    process = subprocess.Popen([sys.executable, str(SCRIPT), "work", str(run.folder)], stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not run.losses():
        time.sleep(0.05)
        assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == 3
    assert run.checkpoints()


@pytest.mark.usefixtures("quick_workers")
def test_one_run_is_trained_by_one_process(tiny_bases, make_spec):
    run = open_run(small(make_spec, tiny_bases["sd1"]))
    lock = run.lock()
    try:
        assert "another process" in follow(run)[-1].message
    finally:
        lock.release()


@pytest.mark.usefixtures("quick_workers")
def test_failures_arrive_as_sentences(tiny_bases, make_spec):
    run = open_run(small(make_spec, tiny_bases["sd1"], method=specs.LoraSpec(targets="pattern", pattern="nothing")))
    assert "matches no layer" in follow(run)[-1].message
    assert list(run.events())[-1].event == "failed", "that the parent goes away is no cancel any more"
    run.spec_path.write_text("{}")
    assert "nobody foresaw" in follow(run)[-1].message


def test_a_spec_trains_from_the_command_line(tiny_bases, make_spec, preloaded, tmp_path):
    spec = small(make_spec, tiny_bases["sd1"])
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    command = [str(SCRIPT), "train", str(path)]
    first = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert first.returncode == 0 and '"finished"' in first.stdout
    second = subprocess.run([*preloaded, *command], capture_output=True, text=True)
    assert "is finished" in second.stdout and '"step"' not in second.stdout
    assert len(open_run(spec).losses()) == STEPS  # nothing was trained again
    path.write_text("{}")
    assert "Field required" in subprocess.run([*preloaded, *command], capture_output=True, text=True).stderr


def test_an_isolated_python_can_start_it():
    """Windows' portable ComfyUI: no working directory, no PYTHONPATH, no script folder on the search path."""
    result = subprocess.run([sys.executable, "-I", str(SCRIPT), "--help"], capture_output=True, text=True, cwd="/")
    assert result.returncode == 0 and "SPEC.json" in result.stdout


def test_two_runs_of_one_name_do_not_meet(tiny_bases, make_spec):
    first = open_run(make_spec(tiny_bases["sd1"]))
    second = open_run(make_spec(tiny_bases["sd1"], optimizer=specs.OptimizerSpec(learning_rate=2e-3)))
    assert (first.name, second.name) == ("run", "run-2")
    assert open_run(make_spec(tiny_bases["sd1"])).folder == first.folder


def test_full_disk_is_a_sentence(tmp_path, monkeypatch):
    import errno
    import os

    from finetune.trainers.files import write_json

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="disk is full"):
        write_json(Path(tmp_path) / "a.json", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_the_server_saves(number, tiny_bases, make_spec):
    run = open_run(small(make_spec, tiny_bases["sd1"]))

    def end(process, event):
        if event.event == "step" and event.step == 3:
            process.process.send_signal(number)

    assert follow(run, end)[-1].event == "cancelled" and run.checkpoints()


@pytest.mark.parametrize("environment, added", [
    ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ({"OMP_NUM_THREADS": "4"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
    ({"KMP_BLOCKTIME": "200"}, {}),
    ({"GOMP_SPINCOUNT": "1000"}, {}),
])
def test_threads_that_wait_sleep_unless_people_have_said_otherwise(environment, added):
    assert thread_settings(environment) == added
