"""Pictures with captions, as a light manifest."""
from comfy_api.latest import io

from ..trainers.data.manifest import scan_folder
from . import host, types


class LoadImageDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneLoadImageDataset",
            display_name="Load Image Dataset",
            category="FineTune/dataset",
            description="A folder of pictures, each with a caption in a .txt (or .caption) file of the same name. Damaged "
                        "pictures are skipped and named. Only names, sizes and captions leave this node, no pixels.",
            inputs=[
                io.Combo.Input("folder", options=host.dataset_choices(),
                               tooltip="Folders with pictures in ComfyUI's input folder and in models/datasets, and the "
                                       "pack's examples. Put yours there and refresh the node list."),
                io.String.Input("trigger", default="",
                                tooltip="A word that will call up what is trained, put in front of every caption that "
                                        "lacks it. A rare word such as 'ohwx' does not disturb others; empty for none."),
                io.String.Input("default_caption", default="",
                                tooltip="Caption of pictures that have no caption file."),
                io.Int.Input("repeats", default=1, min=1, max=1000,
                             tooltip="How often each picture comes in one round through the dataset. Matters when "
                                     "datasets are combined; otherwise leave 1."),
            ],
            outputs=[
                types.Dataset.Output(display_name="dataset", tooltip="For the Train nodes."),
                io.String.Output(display_name="report", tooltip="How many pictures, which sizes, what was skipped."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        folder = host.dataset_folder(inputs["folder"])
        files = [*folder.iterdir(), *folder.glob("masks/*")]
        return sorted((str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files)

    @classmethod
    def execute(cls, folder, trigger, default_caption, repeats):
        progress = host.NodeProgress(cls.hidden.unique_id)
        dataset = scan_folder(
            str(host.dataset_folder(folder)), folder, trigger.strip(), repeats, default_caption.strip(),
            lambda done, total: progress.show(f"checking pictures, {done} of {total}", done, total),
        )
        report = summarise(dataset)
        progress.show(report)
        return io.NodeOutput(dataset, report, ui={"text": [report]})


def summarise(dataset) -> str:
    widths, heights = zip(*(picture.size for picture in dataset.pictures))
    size = f"{min(widths)}×{min(heights)}" + (
        f" to {max(widths)}×{max(heights)}" if len(set(widths)) + len(set(heights)) > 2 else "")
    lines = [f"{len(dataset.pictures)} pictures of {size} pixels in {dataset.name}"]
    return "\n".join([*lines, *(note[0].upper() + note[1:] for note in dataset.notes)])
