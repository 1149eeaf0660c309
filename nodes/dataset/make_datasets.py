"""Datasets from images of the graph, and from other datasets."""
from comfy_api.latest import io

from ...trainers.data.combining import Concept, combine, divide, share_lines
from ...trainers.data.image_store import captions_of, store_dataset
from ...trainers.errors import UserError
from ...trainers.words import counted
from .. import host, sockets
from ..widgets import Schema
from .load_dataset import summarize

SLOTS = 4


class DatasetFromImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneDatasetFromImages",
            display_name="Dataset from Images",
            category="FineTune/dataset",
            search_aliases=("training images", "image batch"),
            description="Images of the graph as a dataset for training, with captions. They are kept once in the output "
                        "folder as files named by their content; only names and captions go on.",
            inputs=[
                io.Image.Input("images", tooltip="A batch of images, or a list of them in different sizes. Four channels "
                                                 "mean transparency."),
                io.String.Input("captions", default="", multiline=True,
                                tooltip="One line for all images, or one line for each, in their order. A list of texts "
                                        "from another node is one caption each."),
                io.String.Input("trigger", default="",
                                tooltip="A word that will call up what is trained, put in front of every caption that lacks "
                                        "it; empty for none."),
                io.Int.Input("repeats", default=1, min=1, max=1000,
                             tooltip="How often each image comes in one round through the dataset. Matters when datasets "
                                     "are combined."),
                io.String.Input("name", default="images", tooltip="Names the dataset and its images in reports."),
                io.Mask.Input("masks", optional=True,
                              tooltip="White where an image counts: one for all images, or one for each. Load Image "
                                      "gives the opposite of its transparency; put Invert Mask between. Used with "
                                      "masked_loss in Training Objective."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="For the Train nodes."),
                io.String.Output(display_name="report", tooltip="How many images, and which sizes."),
            ],
            hidden=[io.Hidden.unique_id],
            is_input_list=True,  # images of different sizes come as a list; every input is one then
        )

    @classmethod
    def execute(cls, images, captions, trigger, repeats, name, masks=None):
        separate = [each for batch in images for each in batch]
        if len(captions) > 1 and len(captions) != len(separate):
            raise UserError(f"captions brings {len(captions)} texts for {counted(len(separate), 'image')}. Connect as "
                            "many as there are images, or one.")
        lines = captions if len(captions) > 1 else captions_of(captions[0], len(separate))
        dataset = store_dataset(
            separate, [" ".join(line.split()) for line in lines],
            [each for batch in masks or [] if batch is not None for each in batch],
            host.output_folder() / ".cache", name[0].strip() or "images", trigger[0].strip(), repeats[0])
        report = summarize(dataset)
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(dataset, report, ui={"text": [report]})


class CombineDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        slots = []
        for number in range(1, SLOTS + 1):
            slots += [
                sockets.Dataset.Input(f"dataset_{number}", optional=True,
                                    tooltip="A concept: images of one thing, person or style. Combined datasets fit too."),
                io.Int.Input(f"repeats_{number}", default=1, min=1, max=1000, optional=True,
                             tooltip=f"How often the images of dataset_{number} come in one round, times their own "
                                     "repeats. Few images of a concept want more, so that the others do not drown it."),
                io.Float.Input(f"weight_{number}", default=1.0, min=0.0, max=100.0, step=0.05, optional=True,
                               tooltip=f"How much the loss of the images of dataset_{number} counts, times their own "
                                       "weight. 1 is usual."),
            ]
        return Schema(
            node_id="FineTuneCombineDatasets",
            display_name="Combine Datasets",
            category="FineTune/dataset",
            search_aliases=("concepts", "merge datasets", "multiple subjects"),
            description="Several datasets as one, to train several concepts at once. Says what part of an epoch each is. "
                        "For more than four, combine the result again.",
            inputs=slots,
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="For the Train nodes."),
                io.String.Output(display_name="report", tooltip="The fraction of each dataset, and what to know of them."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, **inputs):
        parts = [
            Concept(inputs[f"dataset_{number}"], inputs.get(f"repeats_{number}", 1), inputs.get(f"weight_{number}", 1.0))
            for number in range(1, SLOTS + 1) if inputs.get(f"dataset_{number}") is not None
        ]
        dataset = combine(parts)
        report = "\n".join([*share_lines(parts), summarize(dataset)])
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(dataset, report, ui={"text": [report]})


class SplitDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneSplitDataset",
            display_name="Split Dataset",
            category="FineTune/dataset",
            search_aliases=("validation set", "held out", "train test split"),
            description="A dataset as two: images to train, and images held out to judge the result by. Each image's "
                        "own content decides its side, so it stays there when others come or go.",
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="The dataset to divide."),
                io.Float.Input("held_out_fraction", default=0.1, min=0.01, max=0.9, step=0.01,
                               tooltip="About which fraction is held out. In a small dataset it is at least one image; 0.1 "
                                       "to 0.2 is usual."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="training", tooltip="For the Train nodes."),
                sockets.Dataset.Output(display_name="held_out", tooltip="Never trained: for evaluation."),
                io.String.Output(display_name="report", tooltip="How many images are on either side, and which."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, held_out_fraction):
        trained, held_out = divide(dataset, held_out_fraction)
        names = ", ".join([*(image.name for image in held_out.images[:10]), *["…"][:len(held_out.images) > 10]])
        report = f"{counted(len(trained.images), 'image')} to train, {len(held_out.images)} held out: {names}"
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(trained, held_out, report, ui={"text": [report]})
