"""A file tool is one file and one line of the table: worker, run folder and command line read it from there."""
import subprocess
import sys
from pathlib import Path

import pytest
from finetune.trainers.events import FinishedEvent, StartedEvent, WorkingEvent
from finetune.trainers.process.progress import Progress
from finetune.trainers.process.tasks import TASKS, task_of
from finetune.trainers.reports import Report
from finetune.trainers.run_folder import open_run
from finetune.trainers.spec import FolderSpec
from finetune.trainers.tools.file_tasks import TOOLS
from support import toy_tool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def line(monkeypatch):
    monkeypatch.setitem(TOOLS, toy_tool.TOOL.name, toy_tool.TOOL)


def test_a_toy_tool_is_worked_and_its_report_found(line, tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    run = open_run(toy_tool.ReverseSpec(name="made", source=str(tmp_path / "abc"), folders=FolderSpec(
        runs=str(tmp_path / "runs"), caches=str(tmp_path))))
    task, told = task_of(run), []
    assert (task.title, run.task, run.report) == ("Reversing", "reverse", None)
    assert task.perform(run, Progress(told.append, task.stages), lambda: False) == FinishedEvent()
    assert run.report == toy_tool.ReverseReport(files=run.report.files, length=3) and run.artifact.read_bytes() == b"cba"
    assert told == [StartedEvent(run="made"), WorkingEvent(text="reversing", done=1, total=2, progress=0.75)]


def test_the_command_line_offers_every_tool_of_the_table():
    result = subprocess.run([sys.executable, "-m", "trainers", "--help"], cwd=ROOT, capture_output=True, text=True)
    told = " ".join(result.stdout.split())
    assert len(TOOLS) == 7 and all(f" {tool.name} {tool.help} " in told for tool in TOOLS.values())


def test_tools_are_complete():
    for name, tool in TOOLS.items():
        assert name == tool.name not in TASKS and name in Report.classes and tool.stages["start"] > 0
