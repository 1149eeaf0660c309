"""LoRA by peft: low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685), and its relatives."""
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .. import randomness
from ..artifacts.adapters.format import AdapterWeight
from ..artifacts.lora import save_lora
from ..artifacts.metadata import lora_metadata
from ..errors import UserError
from ..families.protocol import Family
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved
from ..spec import BaseModelSpec, LoraSpec, RunSpec
from ..spec.blocks import covers, value_of
from . import adapters
from .adapters import Size
from .protocol import Parts, chosen_encoders, large_encoder_notes, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Lora:
    kind = "lora"

    def __init__(self, spec: LoraSpec, learning_rate: float):
        self.spec, self.learning_rate = spec, learning_rate
        self.trains_text = spec.text_encoder_learning_rate > 0
        self.requires = frozenset({"lora"} | ({"text_encoder"} if self.trains_text else set()))

    def trained_encoders(self, family: Family, base: BaseModelSpec) -> frozenset[str]:
        return chosen_encoders(family, base, self.spec.train_t5) if self.trains_text else frozenset()

    def hidden_words(self) -> tuple[str, ...]:
        return ()

    def trains_base(self) -> bool:
        return False

    def check(self, family: Family, spec: RunSpec) -> list[str]:
        blocks = family.block_names(spec.base)
        for field in ("block_ranks", "block_rates"):
            for name, _ in getattr(self.spec, field):
                if not any(covers(name, block) for block in blocks):
                    raise UserError(f"{field} names {name!r}, which is no block of {spec.base.name}. "
                                    f"Its blocks are {', '.join(blocks)}.")
        notes = large_encoder_notes(family, spec.base, self.spec.train_t5, self.trains_text)
        if self.spec.convolution_rank and self.spec.targets.startswith("attention"):
            notes.append(f"convolution_rank has no effect, because the targets {self.spec.targets!r} have no convolutions")
        return notes

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        pattern = self.spec.pattern if self.spec.targets == "pattern" else parts.family.lora_targets[self.spec.targets]
        block_of, unread = parts.family.block_of, frozenset(parts.family.unread_layers(parts.denoiser))
        # peft draws the adapters' first values from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.derive(seed, randomness.INITIALIZATION))
            self._adapt(parts.denoiser, pattern,
                        lambda name: 0 if name in unread else value_of(self.spec.block_ranks, block_of(name), -1))
            groups = self._groups("denoiser", parts.denoiser, self.learning_rate,
                                  lambda name: value_of(self.spec.block_rates, block_of(name), 1.0))
            for name, encoder in self._encoders(parts).items():
                self._adapt(encoder, parts.family.text_lora_target(name, encoder))
                groups += self._groups(name, encoder, self.spec.text_encoder_learning_rate)
        return groups

    def _encoders(self, parts: Parts) -> "dict[str, PreTrainedModel]":
        return parts.encoders(self.trained_encoders(parts.family, parts.base))

    def _adapt(self, module: nn.Module, pattern: str, rank_of: Callable[[str], float] = lambda name: -1):
        """`rank_of` gives a layer another rank than the spec's; -1 does not."""
        layers = {name: child for name, child in module.named_modules() if isinstance(child, (nn.Linear, nn.Conv2d))}
        matches = [name for name in layers if re.search(pattern, name)]
        if not matches:
            example = next(name for name, child in layers.items() if isinstance(child, nn.Linear))
            raise UserError(f"The target pattern {pattern!r} matches no layer of the model. "
                            f"A layer's name looks like {example!r}.")
        sizes = {name: self._size(layers[name], int(rank_of(name))) for name in matches if rank_of(name) != 0}
        if not sizes:
            raise UserError("block_ranks gives every layer that would be trained the rank 0. Leave a block out of it.")
        adapters.inject(module, self.spec, sizes)

    def _size(self, layer: nn.Module, block_rank: int) -> Size:
        """Of a layer's adapter; `block_rank` -1 is that of the spec."""
        spec = self.spec
        rank, usual_rank, alpha = spec.rank if block_rank < 0 else block_rank, spec.rank, spec.alpha
        if adapters.is_convolution(layer):
            if spec.convolution_alpha:
                alpha, usual_rank = spec.convolution_alpha, spec.convolution_rank or spec.rank
            rank = spec.convolution_rank or rank
        # An adapter acts with alpha / rank. That stays the same at other ranks, or falls with the root of the rank.
        return Size(rank, alpha * rank**0.5 if spec.rank_stabilized else alpha * rank / usual_rank)

    def _groups(self, prefix: str, module: nn.Module, learning_rate: float,
                factor_of: Callable[[str], float] = lambda name: 1.0) -> list[ParameterGroup]:
        """One group for each learning rate; that of factor 1 first. `factor_of` takes the name of a layer."""
        found: dict[float, dict[str, nn.Parameter]] = {}
        for layer_name, layer in adapters.adapter_layers(module):
            for name, parameter in trainable(layer).items():
                faster = self.spec.plus_ratio if name.startswith(adapters.UP) else 1.0
                found.setdefault(factor_of(layer_name) * faster, {})[f"{layer_name}.{name}"] = parameter
        return [
            ParameterGroup(prefix if factor == 1 else f"{prefix} × {factor:.9g}", learning_rate * factor, found[factor])
            for factor in sorted(found, key=lambda factor: (factor != 1, factor))
        ]

    def regularizer(self) -> None:
        return None

    def after_step(self, step: int):
        pass

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> Saved:
        path = folder / f"{name}.safetensors"
        metadata = {**metadata, **lora_metadata(self.spec, parts.family.metadata)}
        return save_lora(path, self._weights(parts), self.spec.file_precision, metadata)

    def _weights(self, parts: Parts) -> Iterator[AdapterWeight]:
        family = parts.family
        for name, layer in adapters.adapter_layers(parts.denoiser):
            yield adapters.weight_of(self.spec, family.denoiser_key(parts.denoiser, name), layer)
        for encoder_name, encoder in self._encoders(parts).items():
            for name, layer in adapters.adapter_layers(encoder):
                yield adapters.weight_of(self.spec, family.text_key(encoder_name, name), layer)
