"""Every training method in the variants that the completeness tests go through, and the rows of families and methods."""
from types import SimpleNamespace

from finetune.trainers import families, methods
from finetune.trainers import spec as specs

METHODS = {
    "attention": specs.LoraSpec(rank=2, alpha=2),
    "all layers, dropout": specs.LoraSpec(rank=2, alpha=1, targets="all with convolutions", dropout=0.3),
    "with text encoder": specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3),
    "hypernetwork": specs.HypernetworkSpec(),
    "hypernetwork, deep": specs.HypernetworkSpec(
        layer_structure=(1, 1.5, 0.5, 1), activation="mish", layer_norm=True, dropout=0.3, widths="cross-attention",
        initialization="kaiming normal"),
    "LoCon with LoRA+ by blocks": lambda blocks: specs.LoraSpec(
        rank=2, alpha=2, targets="all with convolutions", convolution_rank=3, convolution_alpha=1, plus_ratio=4,
        rank_stabilized=True, block_ranks=f"{side(blocks[0])}=1, {blocks[2]}=0, {blocks[-2]}=4",
        block_rates=f"{side(blocks[-2])}=0.5"),
    "DoRA": specs.LoraSpec(adapter="dora", rank=2, alpha=2, targets="all with convolutions", dropout=0.1,
                           text_encoder_learning_rate=1e-3),
    "LoHa": specs.LoraSpec(adapter="loha", rank=2, alpha=2, targets="all with convolutions", dropout=0.1,
                           text_encoder_learning_rate=1e-3, train_t5=True),
    "LoKr": specs.LoraSpec(adapter="lokr", rank=2, alpha=1, targets="all with convolutions", dropout=0.1,
                           kronecker_factor=4, text_encoder_learning_rate=1e-3),
    "new word": specs.TextualInversionSpec(token="square", vectors=2, train_t5=True),
    "new word, fixed length": specs.TextualInversionSpec(
        token="square", vectors=3, initial_text="red dog", norm="fixed", cosine_weight=0.1),
    "new word and LoRA": specs.PivotalSpec(
        embedding=specs.TextualInversionSpec(token="square", vectors=2, initial_text="red"),
        lora=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3)),
    "full": lambda blocks: specs.FullSpec(frozen_blocks=(blocks[0], blocks[2])),
    "full with text encoder": specs.FullSpec(text_encoder_learning_rate=1e-3, file_precision="fp32", train_t5=True),
}
"""By name; those that speak of blocks are made for the blocks of a base."""


EITHER_WAY = "LoKr",
"""Rows that leave the text encoder alone in families whose text encoder learns nothing. One kind of adapter whose factors
depend on the shapes of layers stands for the others there."""


def side(block: str) -> str:
    return block.partition(".")[0]


def method_of(name: str, base: specs.BaseModelSpec):
    """The row of that name, for a base."""
    row, family = METHODS[name], families.get(base.family)
    method = row(family.block_names(base)) if callable(row) else row
    if name in EITHER_WAY and "text_encoder" not in family.capabilities:
        return method.model_copy(update={"text_encoder_learning_rate": 0.0, "train_t5": False})
    return method


def requires(name: str) -> frozenset[str]:
    """The capabilities that a row asks of a family."""
    row = METHODS[name]
    spec = row(["side.0", "side.1", "middle", "other"]) if callable(row) else row
    every = frozenset().union(*(family.capabilities for family in families.FAMILIES.values()))
    return methods.make(spec, 1e-3, SimpleNamespace(capabilities=every)).requires


ROWS = [(family, name) for family in families.NAMES for name in METHODS
        if requires(name) - ({"text_encoder"} if name in EITHER_WAY else set()) <= families.get(family).capabilities]
OTHER_STATE = ("DoRA", "new word and LoRA", "full", "full with text encoder")
RESUMED = [(family, name) for family, name in ROWS if family in ("sd1", "sdxl") or name in OTHER_STATE]
"""Rows that are stopped and resumed, three runs for each: all of a family with one text encoder and of one with two, and of
the others those whose checkpoints hold something that no other row's does."""
