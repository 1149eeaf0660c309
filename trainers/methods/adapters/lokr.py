"""LoKr by peft."""
from typing import Any

from peft import LoKrConfig, PeftConfig

from ...artifacts.adapters.format import AdapterWeight
from ...artifacts.adapters.lokr import LokrWeight
from ...spec import LoraSpec
from .kind import ADAPTER, Sizes, keep_some_outputs


class Lokr:
    def config(self, spec: LoraSpec, sizes: Sizes) -> PeftConfig:
        return LoKrConfig(**sizes, rank_dropout=spec.dropout, rank_dropout_scale=True,
                          decompose_factor=spec.kronecker_factor, init_weights="lycoris")

    def prepare(self, spec: LoraSpec, layer: Any):
        keep_some_outputs(spec, layer)

    def weight(self, key: str, layer: Any) -> AdapterWeight:
        large = (layer.lokr_w2[ADAPTER].detach() if ADAPTER in layer.lokr_w2 else
                 (layer.lokr_w2_a[ADAPTER].detach(), layer.lokr_w2_b[ADAPTER].detach()))
        return LokrWeight(key, layer.lokr_w1[ADAPTER].detach(), large, layer.scaling[ADAPTER])
