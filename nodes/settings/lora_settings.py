"""The kind of adapter, and control by layer."""
from comfy_api.latest import io

from ...trainers.spec import LoraSpec, checked
from .. import sockets
from ..widgets import Schema, fields_of, widget


class LoraSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneLoraSettings",
            display_name="LoRA Settings",
            category="FineTune/settings",
            search_aliases=("dora", "loha", "lokr", "lycoris", "locon", "lora+", "rslora", "block weights", "conv dim"),
            description="What kind of adapter is trained, and where: DoRA, LoHa and LoKr, dropout, ranks for convolutions "
                        "and blocks, LoRA+, the precision of the file. Rank, alpha and targets are on the Train node.",
            inputs=[
                widget(LoraSpec, "adapter",
                       tooltip="lora: the usual. dora: learns lengths of columns too; for low ranks; slower. loha, lokr: "
                               "other products of small matrices (LyCORIS), slower to learn: raise the learning rate 3 to "
                               "10 times. lokr files are tiny."),
                widget(LoraSpec, "dropout",
                       tooltip="Dropout inside the adapter; 0.1 counters overfitting on few images."),
                widget(LoraSpec, "file_precision", tooltip="Precision of the saved file."),
                widget(LoraSpec, "convolution_rank",
                       tooltip="Rank of 3×3 convolutions, for targets: all with convolutions (LoCon). A quarter or half of "
                               "the rank keeps files small. 0: the same as rank."),
                widget(LoraSpec, "convolution_alpha",
                       tooltip="Alpha of 3×3 convolutions. 0: as strong for their rank as alpha is for rank."),
                widget(LoraSpec, "block_ranks",
                       tooltip="Other ranks for blocks of the model, for example: down=4, mid=16, up.1=8. 0 leaves a block "
                               "out. Blocks: down.0, down.1, …, mid, up.0, …; down means all of that side."),
                widget(LoraSpec, "block_rates", name="block_learning_rates",
                       tooltip="Factors of the learning rate for blocks: down=0.5, up.1=2."),
                widget(LoraSpec, "plus_ratio", name="lora_plus_ratio",
                       tooltip="LoRA+: how many times faster the up matrices learn. 4 to 16 learns in fewer steps; 1 is "
                               "plain LoRA. For lora and dora."),
                widget(LoraSpec, "rank_stabilized", name="rslora",
                       tooltip="Rank-stabilized LoRA: it acts with alpha ÷ √rank instead of alpha ÷ rank, so that high "
                               "ranks do not learn more weakly. For lora and dora."),
                widget(LoraSpec, "kronecker_factor", name="lokr_factor",
                       tooltip="lokr: size of the small matrix. -1: both about equal, the smallest file; 4 to 16 can learn "
                               "more and make larger files."),
                widget(LoraSpec, "pattern", name="target_pattern",
                       tooltip="Regular expression over layer names, for targets: pattern on the Train node. Example: "
                               "attn2\\.to_[kv]$"),
                widget(LoraSpec, "train_t5", expert=True,
                       tooltip="With a text_encoder_learning_rate on the Train node: adapt T5 too, where the base has it "
                               "(SD3, Flux.1), not CLIP alone. Needs T5 beside the denoiser: about 10 GB more, and "
                               "rarely helps."),
            ],
            outputs=[sockets.Lora.Output(display_name="lora_settings",
                                         tooltip="For lora_settings on Train LoRA and Train Pivotal Tuning.")],
        )

    @classmethod
    def execute(cls, **widgets):
        return io.NodeOutput(checked(LoraSpec, **fields_of(widgets, {
            "block_learning_rates": "block_rates", "lora_plus_ratio": "plus_ratio", "rslora": "rank_stabilized",
            "lokr_factor": "kronecker_factor", "target_pattern": "pattern"})))
