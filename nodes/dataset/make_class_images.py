"""The Class Images node."""
from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.events import ClassImagesEvent
from ...trainers.run_folder import Run
from ...trainers.sampling.class_images import class_dataset, open_folder
from ...trainers.spec import DatasetSpec, checked
from ...trainers.spec.class_images import ClassImagesSpec
from .. import host, sockets
from ..train.run_training import image_at
from ..widgets import Schema, widget
from .load_dataset import summarize


class ClassImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneClassImages",
            display_name="Regularization Images (class images)",
            category="FineTune/dataset",
            search_aliases=("class images", "prior preservation", "dreambooth", "reg images"),
            description="Class images: lets the base itself generate images of a subject's class, for prior preservation: "
                        "connect them to class_images of a Train node. They are kept; asking for more generates only the "
                        "missing ones, and cancel keeps what there is.",
            inputs=[
                sockets.Base.Input("base", tooltip="The model that will be trained: Base Model or Load Demo Base."),
                widget(ClassImagesSpec, "prompt", default="",
                       tooltip="The class of your subject in plain words, without its rare word, for example: a photo of a "
                               "dog. It becomes the caption of every image."),
                widget(ClassImagesSpec, "count", tooltip="How many images. 200 to 300 are usual for DreamBooth."),
                widget(ClassImagesSpec, "negative", name="negative_prompt",
                       tooltip="What the images shall not show; empty for none."),
                widget(ClassImagesSpec, "resolution",
                       tooltip="Pixels of an image's side: that of the training. SD 1.x 512, SD 2.x 768, SDXL 1024, demo "
                               "base 64. Connect resolution of Load Base to Train."),
                widget(ClassImagesSpec, "sampler_steps",
                       tooltip="Steps of the sampler. 0: what is usual for the base. 20 to 30 are enough."),
                widget(ClassImagesSpec, "guidance",
                       tooltip="How closely images follow the prompt (CFG, or distilled guidance). 0: what is usual for the "
                               "base, 7 for SD 1.x to SDXL."),
                # Not "seed": frontends put a randomize control beside that, and every queue would generate anew.
                widget(ClassImagesSpec, "image_seed",
                       tooltip="Another seed is another set of images, in a folder of its own."),
                widget(ClassImagesSpec, "batch_size",
                       tooltip="Images generated at once. More is faster and needs more memory; the images stay the same."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="dataset", tooltip="For class_images of the Train nodes."),
                io.String.Output(display_name="report", tooltip="How many images there are, and where."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, base, negative_prompt, **widgets):
        spec = checked(
            ClassImagesSpec, base=base, negative=negative_prompt, **widgets, device=host.training_device(),
            folders=host.run_folders())
        progress = host.NodeProgress(cls.hidden.unique_id)
        folder = open_folder(spec)
        dataset = class_dataset(spec) or generate(spec, folder, progress)
        report = f"{summarize(dataset)}\nThey lie in output/finetune/.cache/class_images/{folder.name}/images"
        progress.show(report, 1, 1, image_at(dataset.images[-1].path))
        return io.NodeOutput(dataset, report, ui={"text": [report]})


class Display(host.Display):
    def on_class_images(self, event: ClassImagesEvent):
        self.progress.show(f"generating class images, {event.done} of {event.total}", event.done, event.total,
                           image_at(event.path), event.progress)


def generate(spec: ClassImagesSpec, folder: Run, progress: host.NodeProgress) -> DatasetSpec:
    """Run the worker until all images are there. Raises UserError when it fails, the host's interrupt when cancelled."""
    kept = "the images that are made are kept"
    host.work(folder, Display(progress, "starting the process that generates", f"cancelling; {kept}",
                              f"cancelled; {kept}. Queue again to go on."))
    dataset = class_dataset(spec)
    if dataset is None:
        raise UserError("Some of the class images cannot be read after they were made. Look whether another program "
                        "works on ComfyUI's output folder, and queue again.")
    return dataset
