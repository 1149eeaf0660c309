"""LoRA by peft: low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685)."""
import re
from pathlib import Path
from typing import Iterator, Mapping

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from .. import randomness
from ..artifacts.lora import LoraWeight, save_lora
from ..artifacts.metadata import lora_metadata
from ..errors import UserError
from ..families.protocol import Family
from ..spec import LoraSpec
from .protocol import ParameterGroup, Parts, trainable

ADAPTER = "default"


class Lora:
    kind = "lora"

    def __init__(self, spec: LoraSpec, learning_rate: float):
        self.spec, self.learning_rate = spec, learning_rate
        self.requires = frozenset({"lora"} | ({"text_encoder"} if self.trains_text() else set()))

    def trains_text(self) -> bool:
        return self.spec.text_encoder_learning_rate > 0

    def trains_base(self) -> bool:
        return False

    def check(self, family: Family, spec) -> list[str]:
        return []

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        pattern = self.spec.pattern if self.spec.targets == "pattern" else parts.family.lora_targets[self.spec.targets]
        # peft draws the adapters' first values from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.derive(seed, randomness.INITIALISATION))
            self._adapt(parts.denoiser, pattern)
            groups = [ParameterGroup("denoiser", self.learning_rate, trainable(parts.denoiser))]
            if self.trains_text():
                for name, encoder in parts.text.encoders.items():
                    self._adapt(encoder, parts.family.text_lora_target(name, encoder))
                    rate = self.spec.text_encoder_learning_rate
                    groups.append(ParameterGroup(name, rate, trainable(encoder)))
        return groups

    def _adapt(self, module: nn.Module, pattern: str):
        matches = [
            name for name, child in module.named_modules()
            if isinstance(child, (nn.Linear, nn.Conv2d)) and re.search(pattern, name)
        ]
        if not matches:
            example = next(name for name, child in module.named_modules() if isinstance(child, nn.Linear))
            raise UserError(f"The target pattern {pattern!r} matches no layer of the model. "
                            f"A layer's name looks like {example!r}.")
        module.requires_grad_(False)
        config = LoraConfig(
            r=self.spec.rank, lora_alpha=self.spec.alpha, lora_dropout=self.spec.dropout, target_modules=matches,
            init_lora_weights="gaussian",
        )
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
        for parameter in trainable(module).values():
            # Small steps vanish in half precision: the adapters stay float32 whatever the base is.
            parameter.data = parameter.data.float()

    def regulariser(self) -> None:
        return None

    def after_step(self, step: int):
        pass

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> dict:
        path = folder / f"{name}.safetensors"
        metadata = {**metadata, **lora_metadata(self.spec, parts.family.metadata)}
        facts = save_lora(path, self._weights(parts), self.spec.file_precision, metadata)
        return {"files": [{"kind": "lora", "name": path.name, "bytes": facts["bytes"]}], **facts}

    def _weights(self, parts: Parts) -> Iterator[LoraWeight]:
        family = parts.family
        for name, layer in _lora_layers(parts.denoiser):
            yield _weight(family.denoiser_key(parts.denoiser, name), layer, self.spec.alpha)
        if self.trains_text():
            for encoder_name, encoder in parts.text.encoders.items():
                for name, layer in _lora_layers(encoder):
                    yield _weight(family.text_key(encoder_name, name), layer, self.spec.alpha)


def _lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    return ((name, child) for name, child in module.named_modules() if isinstance(child, LoraLayer))


def _weight(key: str, layer: LoraLayer, alpha: float) -> LoraWeight:
    return LoraWeight(key, layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach(), alpha)
