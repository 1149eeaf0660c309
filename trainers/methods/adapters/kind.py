"""What every kind of adapter is to peft."""
from typing import Any, Protocol, TypedDict

from peft import PeftConfig

from ...artifacts.adapters.format import AdapterWeight
from ...spec import LoraSpec

ADAPTER = "default"
"""peft's name of the one adapter of a layer."""


class Sizes(TypedDict):
    """Arguments of peft's configs: which layers, and the rank and alpha of each."""

    r: int
    target_modules: list[str]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]


class TrainedAdapter(Protocol):
    def config(self, spec: LoraSpec, sizes: Sizes) -> PeftConfig:
        """How peft puts it beside the layers; zero at first."""
        ...

    def prepare(self, spec: LoraSpec, layer: Any):
        """What is left to do with one of peft's layers."""
        ...

    def weight(self, key: str, layer: Any) -> AdapterWeight:
        """What the file stores for one of peft's layers."""
        ...


def keep_some_outputs(spec: LoraSpec, layer: Any):
    """peft's dropout of LoHa and LoKr leaves out whole outputs; where there are few, all of them at once."""
    if spec.dropout ** layer.out_features > 1e-9:
        layer.rank_dropout[ADAPTER] = 0.0
