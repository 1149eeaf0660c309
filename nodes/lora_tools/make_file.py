"""What the nodes share that make files out of files: spec → worker process → progress → the file, placed and checked."""
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.files import write_json
from ...trainers.process.parent import TrainingProcess
from ...trainers.run_folder import Run, open_run
from ...trainers.spec import FolderSpec
from .. import host
from ..train.run_training import place_files

CATEGORY = "FineTune/lora tools"
KINDS = {"bake": ("checkpoint",), **dict.fromkeys(("extract", "merge", "convert", "metadata"), ("lora",))}
"""Tasks that make files which loaders list."""
DEVICES = ["auto", "cpu", "cuda"]


@dataclass
class Made:
    """A finished task: its report, and its files under the names that loaders list, by kind."""

    run: Run
    report: dict
    names: dict[str, str]
    progress: host.NodeProgress

    @property
    def file(self) -> Path:
        return self.run.artifact

    def notes(self) -> list[str]:
        return [f"Note: {note}." for note in self.report["notes"]]


def name_input(default: str, where: str) -> io.String.Input:
    return io.String.Input("name", default=default,
                           tooltip=f"Names the file in {where}. A name that is taken by another result gets -2, -3, …")


def device() -> str:
    return host.training_device()


def folders() -> FolderSpec:
    return FolderSpec(runs=str(host.output_folder()), caches=str(host.output_folder() / ".cache"))


def make(spec, node_id: str, load_check: Callable[[Run, dict], list[str] | None] = lambda run, report: None) -> Made:
    """Do what a FileTaskSpec asks for, or take what is there; place the files and ask the host once whether they load.

    `load_check(run, report)` returns what the host would not load, or None where that is not known. Raises UserError, or the
    host's interrupt.
    """
    for path in spec.inputs():
        if path and not Path(path).exists():
            raise UserError(f"{Path(path).name!r} is not there any more. Refresh the node list and choose again.")
    kinds = KINDS.get(spec.task, ())
    run, progress = open_run(spec, lambda name: host.is_taken(kinds, name)), host.NodeProgress(node_id)
    if run.report is None:
        work(run, progress)
    report = run.report
    if report is None:
        raise UserError(run.deleted)
    if "unmatched_keys" not in report:
        report = {**report, "unmatched_keys": load_check(run, report)}
        write_json(run.report_path, report)
    if report["unmatched_keys"]:
        raise UserError(f"The file is made, but ComfyUI would not load {len(report['unmatched_keys'])} of its weights, for "
                        f"example {report['unmatched_keys'][0]!r}. It is kept at {run.name}/{run.artifact.name}.")
    return Made(run, report, place_files(run, spec.name, report), progress)


def work(run: Run, progress: host.NodeProgress):
    def show(event: dict):
        kind = event["event"]
        if kind == "started":
            progress.show("starting the process", reached=event["progress"])
        elif kind == "phase":
            progress.show(event["text"], reached=event["progress"])
        elif kind == "working":
            progress.show(f"{event['text']}, {event['done']} of {event['total']}", event["done"], event["total"],
                          reached=event["progress"])
        elif kind == "cancelling":
            progress.show("cancelling")
        elif kind == "cancelled":
            progress.show(event.get("message", "cancelled; nothing was written"))
        elif kind == "failed":
            raise UserError(event["message"])

    host.require_packages()
    with TrainingProcess(run) as process:
        host.follow(process.events(), process.cancel, show)


def loads(report: dict) -> str:
    """The host's verdict in words."""
    if report["unmatched_keys"] is None:
        return "whether it loads was not checked, because no base is known"
    return f"loads in ComfyUI with all {report['keys']} keys"
