"""What the captioners share: widgets → spec → worker process → progress → a dataset with new captions. And captions that
need no model."""
import time
from pathlib import Path

from comfy_api.latest import io

from ...trainers.captioning.model_folders import inspect_folder
from ...trainers.captioning.texts import MODES, Mode, from_names, listing, wanted, with_captions
from ...trainers.captioning.work import open_folder, texts_of
from ...trainers.data.images.image_files import read_image
from ...trainers.errors import UserError
from ...trainers.events import CaptionedEvent
from ...trainers.optional_packages import require_packages
from ...trainers.spec import DatasetSpec, checked
from ...trainers.spec.captioning import CaptioningSpec, DecodingSpec
from ...trainers.words import counted
from .. import host, sockets
from ..widgets import Schema, advanced, widget

CATEGORY = "FineTune/captions"
SHOWN = 20
"""Captions on the node; the output has all of them."""


# ---- widgets -------------------------------------------------------------------------------------------------------

def dataset_input():
    return sockets.Dataset.Input("dataset", tooltip="The images: Load Image Dataset, or another captioning node.")


def captioner_input(kind: str, models: str):
    return io.Combo.Input(
        "captioner", options=host.captioner_choices(kind),
        tooltip=f"Folders in models/captioners and models/LLM that hold such a model, for example {models} from "
                "huggingface.co. Put all its files into a folder of its own and refresh the node list.")


def mode_input():
    return io.Combo.Input(
        "mode", options=list(MODES), default="only missing",
        tooltip="Where the new text goes. only missing: images that have a caption keep it. replace: the old caption is "
                "dropped. in front, behind: both, with a comma between. The dataset's trigger word always stays.")


def batch_input(default: int):
    return widget(CaptioningSpec, "batch_size", default=default,
                  tooltip="Images at once. More is faster on a GPU and needs more memory; when that is full, it is halved. "
                          "The captions stay the same, but for rounding.")


def decoding_inputs(maximum_tokens: int, beams: int) -> list:
    return [
        widget(DecodingSpec, "maximum_tokens", default=maximum_tokens,
               tooltip="The longest answer in tokens, about 4 letters each. Training reads some 75 tokens of a caption "
                       "(SD 1.x, SD 2.x, SDXL)."),
        widget(DecodingSpec, "beams", default=beams,
               tooltip="Sentences that are followed at once, of which the best is kept. 3 is better and slower than 1."),
        advanced(widget(DecodingSpec, "repetition_penalty", step=0.05,
                        tooltip="Above 1 words that were used become less likely; 1.2 stops a model that repeats itself. 1: "
                                "the model's own setting.")),
    ]


def outputs() -> list:
    return [
        sockets.Dataset.Output(display_name="dataset", tooltip="The same images with the new captions, for the Train "
                                                             "nodes. Files on the disk are not changed."),
        io.String.Output(display_name="captions", tooltip="All captions, an image a line: name: caption"),
    ]


# ---- the work ------------------------------------------------------------------------------------------------------

def model_state(kind: str, choice: str) -> str:
    """Changes when a file of the chosen model does."""
    return inspect_folder(kind, host.captioner_folder(choice, kind), choice).fingerprint


def caption(node_id: str, build, dataset: DatasetSpec, captioner: str, mode: Mode, batch_size: int,
            **settings) -> io.NodeOutput:
    """Describe the images that `mode` asks for with a model of the spec `build`, or take what was said of them before.

    Raises UserError, or the host's interrupt; what is described by then is kept.
    """
    progress, model = host.NodeProgress(node_id), checked(build, **settings)
    images = wanted(dataset, mode)
    if not images:
        return finished(progress, dataset, ["All images have a caption already; none was asked for."])
    spec = checked(
        CaptioningSpec, model=model, batch_size=batch_size, dataset=dataset.model_copy(update={"images": tuple(images)}),
        folder=inspect_folder(model.kind, host.captioner_folder(captioner, model.kind), captioner),
        folders=host.run_folders(), device=host.training_device())
    require_packages(spec)
    there, notes = texts_of(spec), []
    missing = {image.path for image in images} - there.keys()
    if missing:
        notes = describe(spec, progress)
        there = texts_of(spec)
    if {image.path for image in images} - there.keys():
        raise UserError("Some captions cannot be read after they were made. Look whether another program works on ComfyUI's "
                        "output folder, and queue again.")
    lines = [f"{counted(len(images), 'image')} described by {captioner}, {len(missing)} of them now."]
    silent = [image.name for image in images if not there[image.path]]
    if silent:
        notes.append(f"nothing was said of {counted(len(silent), 'image')}, for example {silent[0]}")
    return finished(progress, with_captions(dataset, there, mode), [*lines, *(f"Note: {note}." for note in notes)])


class Display(host.Display):
    shown = 0.0

    def on_captioned(self, event: CaptionedEvent):
        due = event.done == event.total or time.monotonic() - self.shown > 0.5  # images are large
        self.progress.show(f"{event.done} of {event.total}: {event.caption}", event.done, event.total,
                           image_at(event.path) if due else None, event.progress)
        self.shown = time.monotonic() if due else self.shown


def describe(spec: CaptioningSpec, progress: host.NodeProgress) -> list[str]:
    """Run the worker until all images are described; returns its notes."""
    kept = "what is described is kept"
    display = Display(progress, "starting the captioning process", f"cancelling; {kept}",
                      f"cancelled; {kept}. Queue again to go on.")
    host.work(open_folder(spec), display)
    return display.notes


def image_at(path: str):
    try:
        return read_image(Path(path))
    except UserError:  # it was there when it was described; its image on the node is not worth an error
        return None


def finished(progress: host.NodeProgress, dataset: DatasetSpec, lines: list[str]) -> io.NodeOutput:
    captions = listing(dataset)
    few = captions.splitlines()[:SHOWN]
    more = [f"… and {len(dataset.images) - SHOWN} more"] if len(dataset.images) > SHOWN else []
    report = "\n".join([*lines, *few, *more])
    progress.show(report)
    return io.NodeOutput(dataset, captions, ui={"text": [report]})


class CaptionFromNames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneCaptionFromNames",
            display_name="Caption from Names",
            category=CATEGORY,
            search_aliases=("file names", "auto caption"),
            description="Captions without any model: out of the names of files and folders and a template. Numbering, "
                        "underscores and camera names such as IMG_0001 are left out.",
            inputs=[
                dataset_input(),
                io.String.Input("template", default="a photo of {name}", multiline=True,
                                tooltip="The caption of every image. {name} and {folder} are its cleaned names, {index} "
                                        "its number, {trigger} the trigger word, {caption} the caption so far."),
                mode_input(),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, template, mode):
        changed, notes = from_names(dataset, template, mode)
        count = sum(one.caption != other.caption for one, other in zip(dataset.images, changed.images, strict=True))
        lines = [f"{count} of {counted(len(dataset.images), 'caption')} changed.", *(f"Note: {note}." for note in notes)]
        return finished(host.NodeProgress(cls.hidden.unique_id), changed, lines)
