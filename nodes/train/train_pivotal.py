"""The Train Pivotal Tuning node."""
from comfy_api.latest import io
from safetensors.torch import load_file

from ...trainers.artifacts.embedding import load_embedding
from ...trainers.families.component_configs import component_config
from ...trainers.spec import LoraSpec, PivotalSpec, RunSpec, TextualInversionSpec, checked
from .. import host, sockets
from . import run_training
from .run_training import advanced, batch_inputs, data_inputs, prior_inputs, run_inputs, setting_inputs
from .train_textual_inversion import late_word_inputs, word_inputs, word_line


class TrainPivotal(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneTrainPivotal",
            display_name="Train Pivotal Tuning",
            category="FineTune/train",
            description="Trains a new word and a LoRA together, so that the word says what and the LoRA says how. Gives two "
                        "ordinary files: an embedding that prompts call by embedding:name, and a LoRA for any loader.",
            is_output_node=True,
            inputs=[
                *data_inputs("two files, in models/embeddings and in output/loras", "my_word"),
                *word_inputs(2),
                io.Int.Input("steps", default=1000, min=1, max=1_000_000,
                             tooltip="Optimizer steps for both. 1000 is a start for a subject or style."),
                io.Float.Input("learning_rate", default=1e-4, min=1e-8, max=10.0, step=1e-6,
                               tooltip="Of the LoRA; 0.0001 is usual."),
                io.Float.Input("embedding_learning_rate", default=1e-3, min=1e-8, max=10.0, step=1e-5,
                               tooltip="Of the word; about ten times that of the LoRA."),
                io.Int.Input("rank", default=8, min=1, max=1024,
                             tooltip="Size of the LoRA. 4 to 16 does, because the word carries a part."),
                io.Float.Input("alpha", default=8.0, min=0.01, max=4096.0, step=0.5,
                               tooltip="The LoRA acts with alpha ÷ rank. Keep it equal to the rank, or half of it."),
                io.Combo.Input("targets", default="attention",
                               options=["attention", "attention and feed-forward", "all with convolutions", "pattern"],
                               tooltip="Which layers of the denoiser get an adapter."),
                *run_inputs(),
                io.Float.Input("text_encoder_learning_rate", default=0.0, min=0.0, max=10.0, step=1e-6,
                               tooltip="Above 0 the LoRA adapts the text encoder too. Rarely needed beside a new word."),
                *setting_inputs(),
                *late_word_inputs(0.5),
                advanced(io.Float.Input("dropout", default=0.0, min=0.0, max=0.95, step=0.05, optional=True,
                                        tooltip="Dropout inside the LoRA; 0.1 counters overfitting on few images.")),
                advanced(io.String.Input("target_pattern", default="", optional=True,
                                         tooltip="Regular expression over layer names, for targets: pattern. Example: "
                                                 "attn2\\.to_[kv]$")),
                advanced(io.Combo.Input("file_precision", options=["fp16", "bf16", "fp32"], default="fp16", optional=True,
                                        tooltip="Precision of the LoRA's file; the embedding is always fp32.")),
                *batch_inputs(),
                *prior_inputs(),
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
    def execute(cls, base, dataset, name, **widgets):
        spec = make_spec(base, dataset, name, **widgets)

        def load_check(run, report) -> list[str]:
            lora, word = (run.folder / file["name"] for file in report["files"])
            configs = component_config(base, "unet"), component_config(base, "text_encoder")
            return [*host.unmatched_keys(load_file(lora), base.family, *configs), *host.unloaded_vectors(word, base.family)]

        finished = run_training.run_training(spec, cls.hidden.unique_id, load_check)
        lora_name, prompt = finished.names["lora"], host.embedding_prompt(finished.names["embedding"])
        report = finished.report
        summary = finished.summarize(
            f"{lora_name} loads with all {report['keys']} keys, and {prompt} calls the word in a prompt; use both together",
            word_line(report),
        )
        finished.show(summary)
        return io.NodeOutput(
            load_file(finished.path("lora")), lora_name, load_embedding(finished.path("embedding")), prompt,
            {"loss": finished.run.losses()}, summary,
            ui={"text": [summary], "lora": [lora_name], "images": finished.images()},
        )


def make_spec(base, dataset, name, token, vectors, initial_text, embedding_learning_rate, rank, alpha, targets,
              text_encoder_learning_rate, stop_at=0.5, norm="free", cosine_weight=0.0, dropout=0.0, target_pattern="",
              file_precision="fp16", **widgets) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    word = checked(TextualInversionSpec, token=token.strip(), vectors=vectors, initial_text=initial_text.strip(),
                   stop_at=stop_at, norm=norm, cosine_weight=cosine_weight)
    lora = checked(LoraSpec, rank=rank, alpha=alpha, dropout=dropout, targets=targets, pattern=target_pattern,
                   text_encoder_learning_rate=text_encoder_learning_rate, file_precision=file_precision)
    method = checked(PivotalSpec, embedding=word, lora=lora, embedding_learning_rate=embedding_learning_rate)
    return run_training.make_spec(base, dataset, name, method, **widgets)
