"""Every training method in the variants that the completeness tests go through, for all families."""
from finetune.trainers import spec as specs

METHODS = {
    "attention": specs.LoraSpec(rank=2, alpha=2),
    "all layers, dropout": specs.LoraSpec(rank=2, alpha=1, targets="all with convolutions", dropout=0.3),
    "with text encoder": specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3),
    "hypernetwork": specs.HypernetworkSpec(),
    "hypernetwork, deep": specs.HypernetworkSpec(
        layer_structure=(1, 1.5, 0.5, 1), activation="mish", layer_norm=True, dropout=0.3, widths="cross-attention",
        initialization="kaiming normal"),
    "LoCon with LoRA+ by blocks": specs.LoraSpec(
        rank=2, alpha=2, targets="all with convolutions", convolution_rank=3, convolution_alpha=1, plus_ratio=4,
        rank_stabilized=True, block_ranks="down=1, mid=0, up.1=4", block_rates="up=0.5"),
    "DoRA": specs.LoraSpec(adapter="dora", rank=2, alpha=2, targets="all with convolutions", dropout=0.1,
                           text_encoder_learning_rate=1e-3),
    "LoHa": specs.LoraSpec(adapter="loha", rank=2, alpha=2, targets="all with convolutions", dropout=0.1,
                           text_encoder_learning_rate=1e-3),
    "LoKr": specs.LoraSpec(adapter="lokr", rank=2, alpha=1, targets="all with convolutions", dropout=0.1,
                           kronecker_factor=4, text_encoder_learning_rate=1e-3),
    "new word": specs.TextualInversionSpec(token="square", vectors=2),
    "new word, fixed length": specs.TextualInversionSpec(
        token="square", vectors=3, initial_text="red dog", norm="fixed", cosine_weight=0.1),
    "new word and LoRA": specs.PivotalSpec(
        embedding=specs.TextualInversionSpec(token="square", vectors=2, initial_text="red"),
        lora=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3)),
    "full": specs.FullSpec(frozen_blocks=("down.0", "mid")),
    "full with text encoder": specs.FullSpec(text_encoder_learning_rate=1e-3, file_precision="fp32"),
}
