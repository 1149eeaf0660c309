"""What a checkpoint brings back: all that a run has learned besides its weights, and the newest that can be read."""
import errno
import json
from pathlib import Path

import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.events import StepEvent, ValidationEvent
from finetune.trainers.run_folder import Run, open_run
from finetune.trainers.training.run import Training
from safetensors.torch import load_file
from support.running import losses_of, losses_with_a_stop


def same_tensors(one, other) -> bool:
    one, other = load_file(one), load_file(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("after", [1, 4])
def test_the_mean_of_the_weights_goes_on(after, tiny_bases, make_spec, tmp_path):
    spec = make_spec(tiny_bases["sd1"], method=specs.LoraSpec(rank=2, alpha=2, file_precision="fp32"),
                     training=specs.TrainingSpec(steps=6, batch_size=2, resolution=64, ema_decay=0.9))
    losses, whole = losses_of(spec)
    resumed_losses, resumed = losses_with_a_stop(spec, after, tmp_path / "stopped")
    assert resumed_losses == losses and same_tensors(resumed.artifact, whole.artifact)




def test_the_scaler_of_fp16_goes_on(tiny_bases, make_spec, tmp_path):
    """A GradScaler on the CPU in place of the one that fp16 brings: its scale doubles after every second step, so what it
    was and how many steps it has waited show in its state."""
    def training(spec, stop_after=None):
        accelerator, steps = make_accelerator(spec), []
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
        return Training(spec, open_run(spec), lambda event: steps.append(event) if event.event == "step" else None,
                        lambda: len(steps) == stop_after, accelerator)

    def spec(name):
        return make_spec(tiny_bases["sd1"], optimizer=specs.OptimizerSpec(learning_rate=1e-2, maximum_gradient_norm=0),
                         folders=specs.FolderSpec(runs=str(tmp_path / name), caches=str(tmp_path / "caches")))

    whole = training(spec("whole"))
    whole.execute()
    stopped = training(spec("stopped"), stop_after=3)
    with pytest.raises(Cancelled):
        stopped.execute()
    middle = stopped.accelerator.scaler.state_dict()
    assert (middle["scale"], middle["_growth_tracker"]) == (2.0**9, 1)
    resumed = training(spec("stopped"))
    resumed.execute()
    end = resumed.accelerator.scaler.state_dict()
    assert end == whole.accelerator.scaler.state_dict() and end["scale"] == 2.0**11
    assert same_tensors(resumed.run.artifact, whole.run.artifact)


def test_the_newest_checkpoint_that_can_be_read_is_taken(tmp_path):
    run = Run(tmp_path)
    assert run.load_state() is None
    for step in (5, 10, 15, 20, 1000):
        run.save_state(step, {"value": torch.tensor([float(step)]), "name": "ü"})
    found = []
    for step, damage in [(None, b""), (1000, b""), (20, b"half a file"), (15, None), (10, b"\0" * 2000), (5, b"PK\3\4")]:
        path = run.checkpoint_folder(step or 0) / "state.pt"
        if damage is None:
            path.write_bytes(path.read_bytes()[:-30])
        elif step:
            path.write_bytes(damage)
        state = run.load_state()
        found.append(state and (state[0], state[1]["value"].item()))
    assert found == [(1000, 1000.0), (20, 20.0), (15, 15.0), (10, 10.0), (5, 5.0), None]


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save_state(5, {"value": torch.tensor([5.0])})

    def half(state, file):
        Path(file).write_bytes(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="disk is full"):
        run.save_state(5, {"value": torch.tensor([6.0])})
    step, state = run.load_state()
    assert step == 5 and state["value"].item() == 5
    assert [file.name for file in run.checkpoint_folder(5).iterdir()] == ["state.pt"]


def test_a_run_goes_on_from_the_next_newest_checkpoint(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], checkpoints=specs.CheckpointSpec(every=1, keep=5))
    whole, run = losses_of(spec)
    run.artifact.unlink()
    (run.checkpoint_folder(5) / "state.pt").write_bytes(b"half a file")
    assert losses_of(spec)[0] == whole[4:]


def test_of_a_step_that_was_done_again_the_last_try_counts(tmp_path):
    """After a kill the steps behind the newest checkpoint come again. Cut lines and losses that were no number are left
    out."""
    run = Run(tmp_path)
    assert run.losses() == [] and run.curve(ValidationEvent) == {}
    tries = [(1, 0.5), (2, 0.4), (3, 0.3), (2, 0.25), (3, None), (4, 0.1)]
    lines = [json.dumps({"event": "step", "step": step, "loss": loss, "gradient_norm": step / 8}) for step, loss in tries]
    lines[3:3] = ['{"event": "step", "step": 3, "lo', '{"event": "validation", "step": 3, "loss": 0.7}']
    run.events_path.write_text("\n".join(lines), encoding="utf-8")
    assert run.losses() == [0.5, 0.25, 0.1] and run.curve(ValidationEvent) == {3: 0.7}
    assert run.curve(StepEvent, "gradient_norm") == {1: 0.125, 2: 0.25, 3: 0.375, 4: 0.5}


OLD_REPORT = {
    "steps": 3, "files": [{"kind": "checkpoint", "name": f"{name}.safetensors", "bytes": 0} for name in "ab"], "keys": 4,
    "bytes": 0, "change_norm": 0.5, "relative_change": 0.1, "loss_first_tenth": 1.0, "loss_last_tenth": 0.5, "seconds": 2.0,
    "notes": ["a note"], "stopped_early": False, "unmatched_keys": []}
"""Of the form before reports had a version."""


def test_a_finished_run_has_a_report_and_its_files(tmp_path):
    run = Run(tmp_path)
    assert run.report is None
    run.report_path.write_text(json.dumps(OLD_REPORT))
    (tmp_path / "a.safetensors").touch()
    assert run.report is None  # one was taken away
    (tmp_path / "b.safetensors").touch()
    assert run.report.files[1].name == "b.safetensors" and run.report.load_checked
    assert run.artifact == tmp_path / "a.safetensors"
