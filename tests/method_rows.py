"""Every training method in the variants that the completeness tests go through, for all families."""
from finetune.trainers import spec as specs

METHODS = {
    "attention": specs.LoraSpec(rank=2, alpha=2),
    "all layers, dropout": specs.LoraSpec(rank=2, alpha=1, targets="all with convolutions", dropout=0.3),
    "with text encoder": specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3),
    "new word": specs.TextualInversionSpec(token="square", vectors=2),
    "new word, fixed length": specs.TextualInversionSpec(
        token="square", vectors=3, initial_text="red dog", norm="fixed", cosine_weight=0.1),
    "new word and LoRA": specs.PivotalSpec(
        embedding=specs.TextualInversionSpec(token="square", vectors=2, initial_text="red"),
        lora=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3)),
}
