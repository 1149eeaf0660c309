"""Events, reports and the state of a run: written and read by one definition each; what older versions wrote is read, and
what a newer one wrote is passed over or refused with a sentence."""
import json
import math

import pytest
import torch
from finetune.trainers import events
from finetune.trainers.errors import UserError
from finetune.trainers.events import KINDS, CheckpointEvent, FailedEvent, StepEvent, read_event
from finetune.trainers.reports import Report, RunReport, SavedFile, read_report
from finetune.trainers.run_folder import Run
from finetune.trainers.spec import CheckpointSpec
from finetune.trainers.tools.file_tasks import TOOLS
from finetune.trainers.training.run_state import RunState
from support.running import losses_of

FILE = SavedFile(kind="lora", name="a.safetensors", bytes=0)
VALUES = {int: 3, float: 0.5, str: "images", dict[str, float]: {"a": 1.0}, float | None: 0.25,
          tuple[SavedFile, ...]: (FILE,)}


def example(kind):
    return kind(**{name: VALUES.get(field.annotation, "images") for name, field in kind.model_fields.items()
                   if name not in ("event", "version")})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_it_was_written(kind):
    event = example(kind)
    line = event.model_dump_json()
    assert read_event(line) == event and json.loads(line)["event"] == event.event and json.loads(line)["version"] == 1
    with pytest.raises(ValueError, match="frozen"):
        event.time = 1.0
    stage, done, total = event.stage_done()
    assert isinstance(stage, str) and 0 <= done <= total


def test_every_kind_has_a_name_of_its_own():
    classes = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]
    assert set(KINDS) == set(classes) - {events.Event}
    assert len({kind.model_fields["event"].default for kind in KINDS}) == len(KINDS) == 18


def test_what_cannot_be_read_is_passed_over(tmp_path):
    """A cut line, a kind of a newer version, one of its fields, a line from before versions, a loss that was no number."""
    lines = ['{"event": "step", "step": 1, "loss": 0.5, "lea', '{"event": "teleported", "version": 7}', "[1]", "\x00",
             "null",
             '{"event": "step", "step": 2, "loss": 0.25, "time": 1.5, "learning_rates": {"denoiser": 1e-4}}',
             '{"event": "step", "step": 3, "loss": 0.125, "version": 2, "color": "red"}', '{"event": "step", "loss": 1}',
             StepEvent(step=4, loss=math.nan).model_dump_json(), FailedEvent(message="a\ud800b").model_dump_json()]
    run = Run(tmp_path)
    run.events_path.write_text("\n".join(lines), encoding="utf-8")
    assert [(event.event, getattr(event, "step", None)) for event in run.events()] == [
        ("step", 2), ("step", 3), ("step", 4), ("failed", None)]
    assert run.losses() == [0.25, 0.125] and [*run.events()][-1].message == "a?b"


def test_files_of_a_checkpoint_before_versions(tmp_path):
    run, old = Run(tmp_path), {"event": "checkpoint", "time": 1, "step": 4, "files": [
        {"kind": "lora", "name": "a.safetensors", "bytes": 0}], "progress": 0.5}
    run.events_path.write_text(json.dumps(old) + "\n" + CheckpointEvent(step=5).model_dump_json(), encoding="utf-8")
    assert run.checkpoint_files(4) == (FILE,) and run.checkpoint_files(5) == run.checkpoint_files(6) == ()


# ---- reports -------------------------------------------------------------------------------------------------------

def test_every_tool_and_the_training_have_a_report():
    assert set(Report.classes) >= {"training", *TOOLS}


def test_reports_come_back_and_those_of_newer_versions_are_refused(tmp_path):
    path, report = tmp_path / "report.json", RunReport(
        files=(FILE,), change_norm=0.5, steps=3, loss_first_tenth=1, loss_last_tenth=0.5, seconds=2, notes=("a\ud800",))
    report.write(path)
    assert read_report(path, "training") == report and not report.load_checked and report.notes == ("a?",)
    report.checked(["a key"]).write(path)
    found = read_report(path, "")
    assert found.load_checked and found.unmatched_keys == ("a key",) and isinstance(found, RunReport)
    for change in ({"version": 2}, {"task": "teleport"}):
        path.write_text(json.dumps({**report.model_dump(mode="json"), **change}))
        with pytest.raises(UserError, match="written by a newer version of FineTune. Update the pack, or choose"):
            read_report(path, "training")
    for broken in ("", "{", "[1]", '{"task": "training"}'):
        path.write_text(broken)
        assert read_report(path, "training") is None


# ---- the state of a run --------------------------------------------------------------------------------------------

class Counter:
    def __init__(self):
        self.value = 0

    def state_dict(self) -> dict:
        return {"value": torch.tensor(self.value)}

    def load_state_dict(self, state):
        self.value = int(state["value"])


def test_a_state_is_one_list_of_parts(tmp_path):
    run, one, other = Run(tmp_path), Counter(), Counter()
    state = RunState({"one": one, "other": other, "none": None})
    assert state.load(run) == 0
    one.value = 3
    state.save(run, 7)
    one.value = other.value = 9
    assert state.load(run) == 7 and (one.value, other.value) == (3, 0)
    assert run.load_state()[1].keys() == {"version", "one", "other"}
    with pytest.raises(UserError, match=r"step 7 of .* is of another version of FineTune and lacks scaler, so the run"):
        RunState({"one": one, "scaler": other}).load(run)
    run.save_state(8, {"version": 2, "one": {}})
    with pytest.raises(UserError, match="Update the pack, or choose another name to start anew"):
        state.load(run)


def test_a_checkpoint_without_a_version_goes_on(tiny_bases, make_spec):
    """As they were before: empty parts for what the run does not have."""
    spec = make_spec(tiny_bases["sd1"], checkpoints=CheckpointSpec(every=1, keep=5))
    whole, run = losses_of(spec)
    run.artifact.unlink()
    step, state = run.load_state()
    assert state.pop("version") == 1 and step == 5
    run.save_state(step, {**state, "mean": {}, "scaler": {}})
    assert losses_of(spec)[0] == whole[5:]
