"""Adapters by peft. The registry of their kinds, one file for each; what a file stores of them is in artifacts/adapters/."""
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...artifacts.adapters.format import AdapterWeight
from ...spec import LoraSpec
from .dora import Dora
from .kind import ADAPTER, Sizes, TrainedAdapter
from .loha import Loha
from .lokr import Lokr
from .lora import Lora

UP = f"lora_B.{ADAPTER}."
"""How the names of a LoRA layer's up factors begin."""
KINDS: dict[str, TrainedAdapter] = {"lora": Lora(), "dora": Dora(), "loha": Loha(), "lokr": Lokr()}


@dataclass(frozen=True)
class Size:
    """Of one layer's adapter. `alpha` is what a file stores: the adapter acts with alpha / rank."""

    rank: int
    alpha: float


def inject(module: nn.Module, spec: LoraSpec, sizes: Mapping[str, Size]):
    """Put trainable adapters beside the layers named in `sizes` and freeze everything else. What they add is zero at first.

    The numbers they start from are drawn from the global generator.
    """
    kind = KINDS[spec.adapter]
    module.requires_grad_(False)
    inject_adapter_in_model(kind.config(spec, _sizes(spec, sizes)), module, adapter_name=ADAPTER)
    for _, layer in adapter_layers(module):
        kind.prepare(spec, layer)
        for parameter in layer.parameters():
            if parameter.requires_grad:
                # Small steps vanish in half precision: the adapters stay float32 whatever the base is.
                parameter.data = parameter.data.float()


def _sizes(spec: LoraSpec, sizes: Mapping[str, Size]) -> Sizes:
    names = defaultdict(list)
    for name, size in sizes.items():
        names[size].append(name)
    # One expression for each size: peft tries them one after the other for every layer.
    patterns = {size: f"^(?:{'|'.join(map(re.escape, group))})" for size, group in names.items()}
    return Sizes(
        r=spec.rank, target_modules=list(sizes),
        rank_pattern={pattern: size.rank for size, pattern in patterns.items()},
        alpha_pattern={pattern: size.alpha for size, pattern in patterns.items()})


def adapter_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """peft's layers: modules with its mixin BaseTunerLayer."""
    return ((name, layer) for name, layer in module.named_modules()
            if isinstance(layer, nn.Module) and isinstance(layer, BaseTunerLayer))


def weight_of(spec: LoraSpec, key: str, layer: nn.Module) -> AdapterWeight:
    """What the file stores for a layer."""
    return KINDS[spec.adapter].weight(key, layer)


def is_convolution(module: nn.Module) -> bool:
    """1×1 convolutions count as linear: they are."""
    return isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1)
