"""What the nodes share that make files out of files: spec → worker process → progress → the file, placed and checked."""
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.spec.file_tasks import ExtractionSpec, FileTaskSpec, MergeSpec
from .. import host
from ..widgets import widget

CATEGORY = "FineTune/lora tools"
KINDS = {"bake": ("checkpoint",), **dict.fromkeys(("extract", "merge", "convert", "metadata"), ("lora",))}
"""Tasks that make files which loaders list."""
DEVICES = ["auto", "cpu", "cuda"]


def name_input(default: str, where: str) -> io.String.Input:
    return io.String.Input("name", default=default,
                           tooltip=f"Names the file in {where}. A name that is taken by another result gets -2, -3, …")


def threshold_input(spec: type[ExtractionSpec] | type[MergeSpec], default: float | None = None):
    return widget(spec, "threshold", default=default, lowest=0.0001, step=0.01,
                  tooltip="For the rank methods energy (a fraction, at most 1) and ratio (a number above 1).")


def device() -> str:
    return host.training_device()


def make(spec: FileTaskSpec, report: type[host.R], node_id: str,
         load_check: host.LoadCheck[host.R] = lambda run, report: None) -> host.Made[host.R]:
    """Do what a spec asks for, or take what is there; place the files and ask the host once whether they load. Raises
    UserError, or the host's interrupt."""
    for path in spec.inputs():
        if path and not Path(path).exists():
            raise UserError(f"{Path(path).name!r} is not there any more. Refresh the node list and choose again.")
    progress = host.NodeProgress(node_id)
    return host.make_files(
        spec, report, KINDS.get(spec.task, ()), progress, lambda run: host.work(run, host.Display(progress), free=False),
        load_check, "The file is made")


def loads(report: Any) -> str:
    """The host's verdict in words."""
    if report.unmatched_keys is None:
        return "whether it loads was not checked, because no base is known"
    return f"loads in ComfyUI with all {report.keys} keys"
