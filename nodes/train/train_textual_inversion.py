"""The Train Textual Inversion node."""
from comfy_api.latest import io

from ...trainers.artifacts.embedding import load_embedding
from ...trainers.spec import RunSpec, TextualInversionSpec, checked
from .. import host, sockets
from . import run_training
from .run_training import advanced, batch_inputs, data_inputs, prior_inputs, run_inputs, setting_inputs


def word_inputs(vectors: int = 4) -> list:
    """What the new word is: the same widgets wherever one is trained."""
    return [
        io.String.Input("token", default="",
                        tooltip="The word in the captions that stands for what is learned. Empty: the dataset's trigger."),
        io.Int.Input("vectors", default=vectors, min=1, max=75,
                     tooltip="Places that the word takes in a prompt. 1 to 4 for an object, 4 to 16 for a style. More hold "
                             "more, but crowd out other words."),
        io.String.Input("initial_text", default="",
                        tooltip="Words to start from, such as 'dog' or 'flat drawing'; they repeat until every vector has "
                                "one. Empty: random, which takes longer."),
    ]


def late_word_inputs(stop_at: float = 1.0) -> list:
    return [
        advanced(io.Float.Input("stop_at", default=stop_at, min=0.01, max=1.0, step=0.05, optional=True,
                                tooltip="Share of the steps after which the word stays as it is.")),
        advanced(io.Combo.Input("norm", options=["free", "limited", "fixed"], default="free", optional=True,
                                tooltip="Length of the vectors. limited: never longer than the longest ordinary word. "
                                        "fixed: always as long as ordinary words are on average. Long vectors drown the "
                                        "rest of the prompt.")),
        advanced(io.Float.Input("cosine_weight", default=0.0, min=0.0, max=10.0, step=0.01, optional=True,
                                tooltip="Above 0 the vectors are pulled back to the direction they started from; 0.01 to "
                                        "0.1 keeps the word easier to combine with others.")),
    ]


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneTrainTextualInversion",
            display_name="Train Textual Inversion",
            category="FineTune/train",
            description="Teaches the base model a new word and nothing else: a file of a few kilobytes that prompts call "
                        "by embedding:name. Runs in a process of its own; cancel saves, and the same graph queued again "
                        "goes on.",
            is_output_node=True,
            inputs=[
                *data_inputs("file in models/embeddings, and is what prompts call", "my_word"),
                *word_inputs(),
                io.Int.Input("steps", default=1500, min=1, max=1_000_000,
                             tooltip="Optimizer steps. 1000 to 3000 for SD 1.x and 2.x, 500 to 1500 for SDXL."),
                io.Float.Input("learning_rate", default=5e-4, min=1e-8, max=10.0, step=1e-5,
                               tooltip="0.0005 is usual with AdamW; 0.005 is fast and rough. A few warm-up steps (Learning "
                                       "Rate Schedule) steady the start."),
                *run_inputs(),
                *setting_inputs(),
                *late_word_inputs(),
                advanced(io.Combo.Input("file_precision", options=["fp32", "fp16", "bf16"], default="fp32", optional=True,
                                        tooltip="Precision of the saved file, which is small in any case.")),
                *batch_inputs(),
                *prior_inputs(),
            ],
            outputs=[
                sockets.Embedding.Output(display_name="embedding", tooltip="For Merge Embeddings."),
                io.String.Output(display_name="embedding_name", tooltip="The file's name without its ending."),
                io.String.Output(display_name="prompt",
                                 tooltip="embedding:name, as prompts call the word. Connect it to a text node, or type it."),
                sockets.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.String.Output(display_name="summary", tooltip="What was trained, and whether the file loads."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.losses_of_files(inputs.get("name"))

    @classmethod
    def execute(cls, base, dataset, name, **widgets):
        spec = make_spec(base, dataset, name, **widgets)
        finished = run_training.run_training(
            spec, cls.hidden.unique_id, lambda run, report: host.unloaded_vectors(run.artifact, base.family))
        prompt, report = host.embedding_prompt(finished.names["embedding"]), finished.report
        summary = finished.summarize(f"{prompt} calls the word in a prompt; ComfyUI loads all of it", word_line(report))
        finished.show(summary)
        return io.NodeOutput(
            load_embedding(finished.path("embedding")), prompt.removeprefix("embedding:"), prompt,
            {"loss": finished.run.losses()}, summary,
            ui={"text": [summary], "images": finished.images()},
        )


def word_line(report: dict) -> str:
    return f"It stands for {report['token']!r} in the captions and takes {report['vectors']} places of a prompt."


def make_spec(base, dataset, name, token, vectors, initial_text, stop_at=1.0, norm="free", cosine_weight=0.0,
              file_precision="fp32", **widgets) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    method = checked(TextualInversionSpec, token=token.strip(), vectors=vectors, initial_text=initial_text.strip(),
                     stop_at=stop_at, norm=norm, cosine_weight=cosine_weight, file_precision=file_precision)
    return run_training.make_spec(base, dataset, name, method, **widgets)
