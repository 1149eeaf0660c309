"""A dataset looked at before it is trained."""
import numpy as np
import torch
from comfy_api.latest import io, ui

from ...trainers import families
from ...trainers.data.report.dataset_report import as_text, examine
from ...trainers.data.report.lint import CLIP_TOKENS
from ...trainers.drawing.dataset_report_pages import draw_pages
from ...trainers.spec import BaseModelSpec
from ...trainers.vocabulary import Tokenizer
from .. import host, sockets
from ..widgets import Schema


class DatasetReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneDatasetReport",
            display_name="Dataset Report",
            category="FineTune/dataset",
            search_aliases=("dataset check", "duplicates", "blurred images", "buckets", "lint"),
            description="Looks at all images and captions before they are trained: shapes, buckets, copies, blurred and "
                        "tiny images, captions without the trigger or too long for the text encoder, and more.",
            is_output_node=True,
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="Load Image Dataset, or the last node that changed its captions."),
                io.Int.Input("resolution", default=512, min=64, max=4096, step=8,
                             tooltip="That of the training: it decides which buckets there are and which images are too "
                                     "small. SD 1.x 512, SD 2.x 768, SDXL 1024, demo base 64."),
                io.String.Input("trigger", default="",
                                tooltip="The word that captions should hold; empty for the dataset's own."),
                io.Int.Input("maximum_pages", default=4, min=0, max=32,
                             tooltip="Pages of 64 images at the most. With more images those with findings are shown first. "
                                     "A page takes about 40 MB of memory."),
                sockets.Base.Input("base", optional=True,
                                 tooltip="The base model, whose tokenizer measures the captions. Without it CLIP's, which "
                                         "all SD 1.x, SD 2.x and SDXL have."),
            ],
            outputs=[
                io.Image.Output(display_name="pages", tooltip="Figures and findings, then contact sheets: for Save Image."),
                io.String.Output(display_name="report", tooltip="The same in words, with the names of the images."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, resolution, trigger, maximum_pages, base=None):
        progress = host.NodeProgress(cls.hidden.unique_id)
        tokenizer, room, cut = tokenizer_of(base)
        report = examine(dataset, resolution, tokenizer, trigger.strip(), room,
                         lambda what, done, total: progress.show(f"{what}, {done} of {total}", done, total),
                         base.multiple if base else 8, cut)
        progress.show("drawing the pages")
        pages = [np.asarray(page) for page in draw_pages(report, maximum_pages, tokenizer if cut else None, room)]
        image = torch.empty(len(pages), *pages[0].shape)
        for place, page in enumerate(pages):
            image[place] = torch.from_numpy(page.astype(np.float32) / 255)
        text = as_text(report)
        progress.show(text)
        return io.NodeOutput(image, text, ui={**ui.PreviewImage(image, cls=cls).as_dict(), "text": [text]})


def tokenizer_of(base: BaseModelSpec | None) -> tuple[Tokenizer, int, bool]:
    """(tokenizer by which a base measures captions, tokens of them that it takes, whether it cuts longer ones)."""
    if base is None:
        from ...trainers.families.text.clip import clip_tokenizer

        return clip_tokenizer(), CLIP_TOKENS, True
    family = families.get(base.family)
    tokenizers = family.load_tokenizers(base)
    return family.caption_tokenizer(tokenizers), family.token_count(tokenizers, "")[1], family.cuts_captions(base)
