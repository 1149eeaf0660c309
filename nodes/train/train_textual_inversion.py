"""The Train Textual Inversion node."""
from comfy_api.latest import io

from ...trainers.artifacts.embedding import load_embedding
from ...trainers.reports import RunReport
from ...trainers.spec import BaseModelSpec, DatasetSpec, RunSpec, TextualInversionSpec, checked
from .. import host, sockets
from ..widgets import Schema, widget
from . import run_training
from .train_inputs import (
    batch_inputs,
    choose,
    data_inputs,
    flow_inputs,
    length_inputs,
    make_spec,
    prior_inputs,
    run_inputs,
    setting_inputs,
)


def word_inputs(vectors: int = 4) -> list:
    """What the new word is: the same widgets wherever one is trained."""
    return [
        widget(TextualInversionSpec, "token", name="placeholder_token",
               tooltip="The word in the captions that stands for what is learned. Empty: the dataset's trigger."),
        widget(TextualInversionSpec, "vectors", default=vectors,
               tooltip="Vectors of the word, each of which takes one place of a prompt. 1 to 4 for an object, 4 to 16 for a "
                       "style. More hold more, but crowd out other words."),
        widget(TextualInversionSpec, "initial_text", name="initializer_text",
               tooltip="Words to start from, such as 'dog' or 'flat drawing'; they repeat until every vector has one. "
                       "Empty: random, which takes longer."),
    ]


def late_word_inputs(fraction: float = 1.0) -> list:
    return [
        widget(TextualInversionSpec, "stop_at", name="embedding_training_fraction", default=fraction, expert=True,
               tooltip="Fraction of the steps in which the word is trained; afterwards it stays as it is."),
        widget(TextualInversionSpec, "norm", name="embedding_norm", expert=True,
               tooltip="Length of the vectors. limited: never longer than the longest ordinary word. fixed: always as long "
                       "as ordinary words are on average. Long vectors drown the rest of the prompt."),
        widget(TextualInversionSpec, "cosine_weight", expert=True,
               tooltip="Above 0 the vectors are pulled back to the direction they started from; 0.01 to 0.1 keeps the word "
                       "easier to combine with others."),
    ]


def t5_word_input():
    return widget(TextualInversionSpec, "train_t5", name="word_in_t5", expert=True,
                  tooltip="The word gets vectors for T5 too, where the base has it (SD3, Flux.1), not for CLIP alone. "
                          "Learns more, above all on Flux.1; needs T5 beside the denoiser: about 10 GB more.")


def word_spec(placeholder_token, vectors, initializer_text, embedding_training_fraction, embedding_norm="free",
              cosine_weight=0.0, **fields) -> TextualInversionSpec:
    """The widgets of a word as a checked spec."""
    return checked(TextualInversionSpec, token=placeholder_token.strip(), vectors=vectors,
                   initial_text=initializer_text.strip(), stop_at=embedding_training_fraction, norm=embedding_norm,
                   cosine_weight=cosine_weight, **fields)


class TrainTextualInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTrainTextualInversion",
            display_name="Train Textual Inversion (FineTune)",
            category="FineTune/train",
            search_aliases=("embedding training", "ti", "fine-tune", "finetuning", "training"),
            description="Teaches the base model a new word and nothing else: a file of a few kilobytes that prompts call "
                        "by embedding:name. Runs in a process of its own; cancel saves, and the same graph queued again "
                        "goes on.",
            is_output_node=True,
            inputs=[
                *data_inputs("file in models/embeddings, and is what prompts call", "my_word"),
                *word_inputs(),
                *length_inputs(1500, "1000 to 3000 for SD 1.x and 2.x, 500 to 1500 for SDXL.", 5e-4,
                               "0.0005 is usual with AdamW; 0.005 is fast and rough. A few warm-up steps (Learning Rate "
                               "Schedule) steady the start.", step=1e-5),
                *run_inputs(),
                *setting_inputs(),
                *late_word_inputs(),
                widget(TextualInversionSpec, "file_precision", expert=True,
                       tooltip="Precision of the saved file, which is small in any case."),
                *batch_inputs(),
                *prior_inputs(),
                *flow_inputs(),
                t5_word_input(),
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
    def execute(cls, base: BaseModelSpec, dataset: DatasetSpec, name: str, **widgets):
        choice = choose("textual_inversion", base, dataset, widgets)
        spec = word_run(base, dataset, name, **choice.widgets)
        finished = run_training.run_training(
            spec, cls.hidden.unique_id, lambda run, report: host.unloaded_vectors(run.artifact, base.family), choice.lines)
        prompt, report = host.embedding_prompt(finished.names["embedding"]), finished.report
        summary = finished.summarize(f"{prompt} calls the word in a prompt; ComfyUI loads all of it", word_line(report))
        finished.show(summary)
        return io.NodeOutput(
            load_embedding(finished.path("embedding")), prompt.removeprefix("embedding:"), prompt,
            {"loss": finished.run.losses()}, summary,
            ui={"text": [summary], "images": finished.images(), **choice.for_page},
        )


def word_line(report: RunReport) -> str:
    return f"It stands for {report.token!r} in the captions and takes {report.vectors} places of a prompt."


def word_run(base: BaseModelSpec, dataset: DatasetSpec, name: str, placeholder_token, vectors, initializer_text,
             embedding_training_fraction=1.0, embedding_norm="free", cosine_weight=0.0, file_precision="fp32",
             word_in_t5=False, **widgets) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    method = word_spec(placeholder_token, vectors, initializer_text, embedding_training_fraction, embedding_norm,
                       cosine_weight, file_precision=file_precision, train_t5=word_in_t5)
    return make_spec(base, dataset, name, method, **widgets)
