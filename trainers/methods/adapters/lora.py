"""LoRA by peft."""
from typing import Any

from peft import LoraConfig, PeftConfig

from ...artifacts.adapters.format import AdapterWeight
from ...artifacts.adapters.lora import LoraWeight
from ...spec import LoraSpec
from .kind import ADAPTER, Sizes


class Lora:
    def config(self, spec: LoraSpec, sizes: Sizes) -> PeftConfig:
        return LoraConfig(**sizes, lora_dropout=spec.dropout, init_lora_weights="gaussian")

    def prepare(self, spec: LoraSpec, layer: Any):
        pass

    def weight(self, key: str, layer: Any) -> AdapterWeight:
        return LoraWeight(key, layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach(),
                          layer.lora_alpha[ADAPTER])
