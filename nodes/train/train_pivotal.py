"""The Train Pivotal Tuning node."""
from comfy_api.latest import io
from safetensors.torch import load_file

from ...trainers.artifacts.embedding import load_embedding
from ...trainers.reports import RunReport
from ...trainers.run_folder import Run
from ...trainers.spec import BaseModelSpec, DatasetSpec, PivotalSpec, RunSpec, checked
from .. import host, sockets
from ..widgets import Schema, widget
from . import run_training
from .train_inputs import (
    batch_inputs,
    choose,
    data_inputs,
    flow_inputs,
    length_inputs,
    lora_inputs,
    lora_settings_input,
    lora_spec,
    make_spec,
    prior_inputs,
    run_inputs,
    setting_inputs,
    text_encoder_input,
)
from .train_textual_inversion import late_word_inputs, t5_word_input, word_inputs, word_line, word_spec


class TrainPivotal(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTrainPivotal",
            display_name="Train Pivotal Tuning (FineTune)",
            category="FineTune/train",
            search_aliases=("textual inversion with lora", "ti", "fine-tune", "finetuning", "training"),
            description="Trains a new word and a LoRA together, so that the word says what and the LoRA says how. Gives two "
                        "ordinary files: an embedding that prompts call by embedding:name, and a LoRA for any loader.",
            is_output_node=True,
            inputs=[
                *data_inputs("two files, in models/embeddings and in output/loras", "my_word"),
                *word_inputs(2),
                *length_inputs(1000, "1000 for word and LoRA together is a start for a subject or style.", 1e-4,
                               "Of the LoRA; 0.0001 is usual."),
                widget(PivotalSpec, "embedding_learning_rate", default=5e-4, preset=True,
                       tooltip="Of the word; five to ten times that of the LoRA."),
                *lora_inputs(8, "Size of the LoRA. 4 to 16 does, because the word carries a part.", expert=True),
                text_encoder_input("Above 0 the LoRA adapts the text encoder too. Rarely needed beside a new word.",
                                   expert=True),
                *run_inputs(expert_seed=True),
                lora_settings_input(),
                *setting_inputs(),
                *late_word_inputs(0.5),
                *batch_inputs(),
                *prior_inputs(),
                *flow_inputs(),
                t5_word_input(),
            ],
            outputs=[
                sockets.LoraModel.Output(display_name="lora", tooltip="For Load LoRA Model and Save LoRA."),
                sockets.FileName.Output(display_name="lora_name",
                                      tooltip="The file's name: connect it to the lora_name of any LoRA loader."),
                sockets.Embedding.Output(display_name="embedding", tooltip="For Merge Embeddings."),
                io.String.Output(display_name="prompt",
                                 tooltip="embedding:name, as prompts call the word. Use it together with the LoRA."),
                sockets.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.String.Output(display_name="summary", tooltip="What was trained, and whether the files load."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.losses_of_files(inputs.get("name"))

    @classmethod
    def execute(cls, base: BaseModelSpec, dataset: DatasetSpec, name: str, **widgets):
        choice = choose("pivotal", base, dataset, widgets)
        spec = pivotal_run(base, dataset, name, **choice.widgets)

        def load_check(run: Run, report: RunReport) -> list[str]:
            lora, word = (run.folder / file.name for file in report.files)
            return [*host.unloaded_keys(load_file(lora), base), *host.unloaded_vectors(word, base.family)]

        finished = run_training.run_training(spec, cls.hidden.unique_id, load_check, choice.lines)
        lora_name, prompt = finished.names["lora"], host.embedding_prompt(finished.names["embedding"])
        report = finished.report
        summary = finished.summarize(
            f"{lora_name} loads with all {report.keys} keys, and {prompt} calls the word in a prompt; use both together",
            word_line(report),
        )
        finished.show(summary)
        return io.NodeOutput(
            load_file(finished.path("lora")), lora_name, load_embedding(finished.path("embedding")), prompt,
            {"loss": finished.run.losses()}, summary,
            ui={"text": [summary], "lora": [lora_name], "images": finished.images(), **choice.for_page},
        )


def pivotal_run(base: BaseModelSpec, dataset: DatasetSpec, name: str, placeholder_token, vectors, initializer_text,
                embedding_learning_rate, rank, alpha=8.0, targets="attention", text_encoder_learning_rate=0.0,
                lora_settings=None, embedding_training_fraction=0.5, embedding_norm="free", cosine_weight=0.0,
                word_in_t5=False, **widgets) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    word = word_spec(placeholder_token, vectors, initializer_text, embedding_training_fraction, embedding_norm,
                     cosine_weight, train_t5=word_in_t5)
    lora = lora_spec(lora_settings, rank=rank, alpha=alpha, targets=targets,
                     text_encoder_learning_rate=text_encoder_learning_rate)
    method = checked(PivotalSpec, embedding=word, lora=lora, embedding_learning_rate=embedding_learning_rate)
    return make_spec(base, dataset, name, method, **widgets)
