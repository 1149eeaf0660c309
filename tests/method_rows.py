"""Every training method in the variants that the completeness tests go through, for all families."""
from finetune.trainers import spec as specs

METHODS = {
    "attention": specs.LoraSpec(rank=2, alpha=2),
    "all layers, dropout": specs.LoraSpec(rank=2, alpha=1, targets="all with convolutions", dropout=0.3),
    "with text encoder": specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3),
    "full": specs.FullSpec(frozen_blocks=("down.0", "mid")),
    "full with text encoder": specs.FullSpec(text_encoder_learning_rate=1e-3, file_precision="fp32"),
}
