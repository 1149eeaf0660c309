"""What is trained: one part for each training method, told apart by `kind`."""
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .adapters import ADAPTERS
from .blocks import BlockNames, BlockValues
from .part import Part, number

FilePrecision = Literal["fp16", "bf16", "fp32"]
Rate = Annotated[float, number(0.0, ge=0, le=10, step=1e-6)]
"""The run refuses more than 0.1 unless the optimizer takes factors."""


class LoraSpec(Part):
    """Low-rank adaptation and its relatives.

    lora: W + alpha / rank · up · down (Hu et al. 2021, arXiv:2106.09685). dora: the same, each input column scaled to a
    trained length (Liu et al. 2024, arXiv:2402.09353). loha: the element-wise product of two such factors (Hyeon-Woo et
    al. 2021, arXiv:2108.06098). lokr: a Kronecker product (Yeh et al. 2023, arXiv:2309.14859).
    """

    kind: Literal["lora"] = "lora"
    adapter: str = Field(default="lora", json_schema_extra={"options": list(ADAPTERS)})
    """One of ADAPTERS."""
    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = number(16.0, ge=0.01, le=4096, step=0.5)
    convolution_rank: int = Field(default=0, ge=0, le=1024)
    """Rank of 3×3 convolutions; 0: that of the other layers."""
    convolution_alpha: float = number(0.0, ge=0, le=4096, step=0.5)
    """Alpha of 3×3 convolutions; 0: in the same proportion to their rank as `alpha` to `rank`, or with rank-stabilized
    scaling just `alpha`."""
    dropout: float = number(0.0, ge=0, le=0.95, step=0.05)
    targets: Literal["attention", "attention and feed-forward", "all with convolutions", "pattern"] = "attention"
    pattern: str = ""
    """Regular expression over the denoiser's module names, used when `targets` is "pattern"."""
    block_ranks: BlockValues = ()
    """Rank of named blocks instead of `rank`, alpha in proportion; 0 leaves a block without adapters. Convolutions keep
    their own rank, if they have one."""
    block_rates: BlockValues = ()
    """Factors of the learning rate for named blocks."""
    plus_ratio: float = number(1.0, ge=1, le=1000, step=1)
    """How many times faster the up factors learn (LoRA+, Hayou et al. 2024, arXiv:2402.12354; 16 in the paper)."""
    rank_stabilized: bool = False
    """Scale with alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732)."""
    kronecker_factor: int = Field(default=-1, ge=-1, le=1024)
    """lokr: size of the small factor; -1 makes both as equal as the layer allows."""
    text_encoder_learning_rate: Rate = 0.0
    """0 leaves the text encoders untouched."""
    file_precision: FilePrecision = "fp16"
    train_t5: bool = False
    """Text encoders learn: T5 too."""

    @model_validator(mode="after")
    def _pattern_compiles(self):
        if self.targets == "pattern":
            if not self.pattern:
                raise ValueError("targets is \"pattern\" but target_pattern is empty; type one on LoRA Settings, for "
                                 "example attn2\\.to_[kv]$")
            try:
                re.compile(self.pattern)
            except re.error as problem:
                raise ValueError(f"the pattern {self.pattern!r} is not a regular expression: {problem}") from None
        return self

    @model_validator(mode="after")
    def _adapter_can(self):
        for block, rank in self.block_ranks:
            if rank != int(rank) or rank > 1024:
                raise ValueError(f"block_ranks: the rank of {block!r} is {rank:g}; write a whole number from 0 to 1024")
        for block, factor in self.block_rates:
            if not 0 < factor <= 100:
                raise ValueError(f"block_rates: the factor of {block!r} is {factor:g}; write a number above 0, up to "
                                 f"100. To leave the block out, write {block}=0 into block_ranks")
        if self.kronecker_factor == 0:
            raise ValueError("kronecker_factor is 0; write a size of at least 1, or -1 for the one that fits best")
        if self.adapter not in ADAPTERS:
            raise ValueError(f"adapter is {self.adapter!r}; choose one of {', '.join(ADAPTERS)}")
        if not ADAPTERS[self.adapter].up_and_down:
            if self.plus_ratio != 1:
                raise ValueError(f"LoRA+ is about the two factors of a LoRA; {self.adapter} has others. Set its ratio to 1")
            if self.rank_stabilized:
                raise ValueError(f"rank-stabilized scaling is for lora and dora, not for {self.adapter}; switch it off")
        return self


class FullSpec(Part):
    """Fine-tuning of the denoiser's own weights: DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) when class images
    are given too."""

    kind: Literal["full"] = "full"
    frozen_blocks: BlockNames = ()
    """Blocks that keep the base's weights."""
    text_encoder_learning_rate: Rate = 0.0
    """0 leaves the text encoders untouched."""
    file_precision: FilePrecision = "fp16"
    shard_size: float = number(0.0, ge=0, le=1000, step=0.5)
    """Largest size of a file in GB; 0 writes one file, which ComfyUI's checkpoint loader needs."""
    train_t5: bool = False
    """Text encoders learn: T5 too."""


class TextualInversionSpec(Part):
    """New vectors in the text encoders' vocabulary (Gal et al. 2022, arXiv:2208.01618); all else stays as it is."""

    kind: Literal["textual_inversion"] = "textual_inversion"
    token: str = Field(default="", max_length=64)
    """The word in captions that stands for what is learned."""
    vectors: int = Field(default=1, ge=1, le=75)
    initial_text: str = ""
    """Words whose vectors are the start; empty: random vectors of the vocabulary's size and spread."""
    stop_at: float = number(1.0, ge=0.01, le=1, step=0.05)
    """Fraction of the steps after which the vectors stay as they are."""
    norm: Literal["free", "limited", "fixed"] = "free"
    """Length of the vectors: free; limited to the longest of ordinary words; fixed at the mean of ordinary words."""
    cosine_weight: float = number(0.0, ge=0, le=10, step=0.01)
    """Weight of (1 - cosine to the initial vectors) in the loss."""
    file_precision: FilePrecision = "fp32"
    train_t5: bool = False
    """The word has vectors for T5 too, not for CLIP alone."""

    @field_validator("token")
    @classmethod
    def _token_is_a_word(cls, token: str) -> str:
        if token and not re.fullmatch(r"[^\W_][\w\-]*", token):
            raise ValueError(f"{token!r} cannot be a placeholder word; use letters, digits, _ and - only")
        return token


class HypernetworkSpec(Part):
    """Small networks in front of the keys and values of every attention, as A1111 trains them (its
    `modules/hypernetworks/hypernetwork.py`)."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    layer_structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    """Widths of the layers as multiples of the context's width; begins and ends with 1."""
    activation: Literal["linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish"] = "linear"
    activate_output: bool = False
    layer_norm: bool = False
    dropout: float = number(0.0, ge=0, le=0.95, step=0.05)
    """Only while training; the file says that there is none, because the host would go on dropping."""
    initialization: Literal["normal", "xavier uniform", "xavier normal", "kaiming uniform", "kaiming normal"] = "normal"
    widths: Literal["all", "cross-attention", "self-attention"] = "all"

    @field_validator("layer_structure")
    @classmethod
    def _structure_fits(cls, structure: tuple[float, ...]) -> tuple[float, ...]:
        if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1 or not all(0 < each <= 16 for each in structure):
            raise ValueError("the layer structure needs at least two numbers between 0 and 16 and begins and ends with 1, "
                             "for example 1, 2, 1")
        return structure


class PivotalSpec(Part):
    """An embedding and a LoRA trained together (pivotal tuning, Roich et al. 2021, arXiv:2106.05744, as cloneofsimo's
    `lora_diffusion` and diffusers' advanced examples do it), saved as two ordinary files."""

    kind: Literal["pivotal"] = "pivotal"
    embedding: TextualInversionSpec
    lora: LoraSpec
    embedding_learning_rate: float = number(1e-3, ge=1e-9, le=10, step=1e-5)

    @property
    def text_encoder_learning_rate(self) -> float:
        return self.lora.text_encoder_learning_rate


MethodSpec = Annotated[
    LoraSpec | FullSpec | TextualInversionSpec | HypernetworkSpec | PivotalSpec, Field(discriminator="kind")
]
