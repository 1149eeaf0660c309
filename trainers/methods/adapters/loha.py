"""LoHa by peft."""
from typing import Any

from peft import LoHaConfig, PeftConfig

from ...artifacts.adapters.format import AdapterWeight
from ...artifacts.adapters.loha import LohaWeight
from ...spec import LoraSpec
from .kind import ADAPTER, Sizes, keep_some_outputs


class Loha:
    def config(self, spec: LoraSpec, sizes: Sizes) -> PeftConfig:
        return LoHaConfig(**sizes, rank_dropout=spec.dropout)

    def prepare(self, spec: LoraSpec, layer: Any):
        keep_some_outputs(spec, layer)

    def weight(self, key: str, layer: Any) -> AdapterWeight:
        factors = (getattr(layer, f"hada_{name}")[ADAPTER].detach() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return LohaWeight(key, *factors, alpha=layer.alpha[ADAPTER])
