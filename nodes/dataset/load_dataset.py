"""Images with captions, as a light manifest."""
from typing import get_args

from comfy_api.latest import io

from ...trainers.data.combining import size_range
from ...trainers.data.images.colors import hexadecimal
from ...trainers.data.images.image_files import WHITE
from ...trainers.data.manifest import Subfolders, scan_folder
from ...trainers.data.sources import folder_state
from ...trainers.words import counted
from .. import host, sockets
from ..widgets import Schema

IGNORE = get_args(Subfolders)[0]


class LoadImageDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneLoadImageDataset",
            display_name="Load Image Dataset",
            category="FineTune/dataset",
            search_aliases=("training images", "folder", "kohya dataset", "captions", "fine-tune"),
            description="A folder of images, each with a caption in a .txt (or .caption) file of the same name, or in a "
                        "metadata.jsonl. Damaged images are skipped and named. Only names, sizes and captions "
                        "leave this node, no pixels.",
            inputs=[
                io.Combo.Input("folder", options=host.dataset_choices(),
                               tooltip="Folders with images in ComfyUI's input folder and in models/datasets, and the "
                                       "pack's examples. Put yours there and refresh the node list."),
                io.String.Input("trigger", default="",
                                tooltip="A word that will call up what is trained, put in front of every caption that "
                                        "lacks it. A rare word such as 'ohwx' does not disturb others; empty for none."),
                io.String.Input("default_caption", default="",
                                tooltip="Caption of images that have no caption file."),
                io.Int.Input("repeats", default=1, min=1, max=1000,
                             tooltip="How often each image comes in one round through the dataset. Matters when "
                                     "datasets are combined; otherwise leave 1."),
                io.Combo.Input("subfolders", options=list(get_args(Subfolders)), default=IGNORE, optional=True,
                               tooltip="Read the images in folders inside the folder too. 'read, repeats by name': a "
                                       "folder called 10_ohwx cat comes 10 times a round and captions its images that "
                                       "have no caption with 'ohwx cat', as in kohya's trainers."),
                io.String.Input("background", default=WHITE, optional=True,
                                tooltip="The color that shows through transparent parts, as #rrggbb or by name. #ffffff is "
                                        "white. It is learned, so choose one that your images should have."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="For the Train nodes."),
                io.String.Output(display_name="report", tooltip="How many images, which sizes, what was skipped."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return folder_state(host.dataset_folder(inputs["folder"]), inputs.get("subfolders", IGNORE) != IGNORE,
                            host.host_folders())

    @classmethod
    def execute(cls, folder, trigger, default_caption, repeats, subfolders=IGNORE, background=WHITE):
        progress, background = host.NodeProgress(cls.hidden.unique_id), hexadecimal(background)
        dataset = scan_folder(
            str(host.dataset_folder(folder)), folder, trigger.strip(), repeats, default_caption.strip(),
            lambda done, total: progress.show(f"checking images, {done} of {total}", done, total),
            subfolders, background, host.host_folders(),
        )
        report = summarize(dataset)
        progress.show(report)
        return io.NodeOutput(dataset, report, ui={"text": [report]})


def summarize(dataset) -> str:
    first = f"{counted(len(dataset.images), 'image')} of {size_range(dataset.images)} in {dataset.name}"
    return "\n".join([first, *(note[0].upper() + note[1:] for note in dataset.notes)])
