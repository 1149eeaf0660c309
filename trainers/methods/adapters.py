"""The kinds of adapters by peft: how each is put beside a layer, and what it stores."""
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Iterator, Mapping

from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.loha import LoHaLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..artifacts.adapters import DoraWeight, LohaWeight, LokrWeight
from ..artifacts.lora import AdapterWeight, LoraWeight
from ..spec import LoraSpec
from .dora import add_lengths

ADAPTER = "default"
UP = f"lora_B.{ADAPTER}."
"""How the names of a LoRA layer's up factors begin."""


@dataclass(frozen=True)
class Size:
    """Of one layer's adapter. `alpha` is what a file stores: the adapter acts with alpha / rank."""

    rank: int
    alpha: float


def inject(module: nn.Module, spec: LoraSpec, sizes: Mapping[str, Size]):
    """Put trainable adapters beside the layers named in `sizes` and freeze everything else. What they add is zero at first.

    The numbers they start from are drawn from the global generator.
    """
    module.requires_grad_(False)
    inject_adapter_in_model(_config(spec, sizes), module, adapter_name=ADAPTER)
    for _, layer in adapter_layers(module):
        if spec.adapter == "dora":
            add_lengths(layer, ADAPTER)
        elif spec.adapter in ("loha", "lokr") and spec.dropout ** layer.out_features > 1e-9:
            layer.rank_dropout[ADAPTER] = 0.0  # it leaves out whole outputs; with few, all of them at once
        for parameter in layer.parameters():
            if parameter.requires_grad:
                # Small steps vanish in half precision: the adapters stay float32 whatever the base is.
                parameter.data = parameter.data.float()


def _config(spec: LoraSpec, sizes: Mapping[str, Size]):
    names = defaultdict(list)
    for name, size in sizes.items():
        names[size].append(name)
    # One expression for each size: peft tries them one after the other for every layer.
    patterns = {size: f"^(?:{'|'.join(map(re.escape, group))})" for size, group in names.items()}
    common = dict(
        r=spec.rank, target_modules=list(sizes),
        rank_pattern={pattern: size.rank for size, pattern in patterns.items()},
        alpha_pattern={pattern: size.alpha for size, pattern in patterns.items()},
    )
    if spec.adapter in ("lora", "dora"):
        return LoraConfig(**common, lora_dropout=spec.dropout, init_lora_weights="gaussian")
    if spec.adapter == "loha":
        return LoHaConfig(**common, rank_dropout=spec.dropout)
    return LoKrConfig(**common, rank_dropout=spec.dropout, rank_dropout_scale=True,
                      decompose_factor=spec.kronecker_factor, init_weights="lycoris")


def adapter_layers(module: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    return ((name, child) for name, child in module.named_modules() if isinstance(child, BaseTunerLayer))


def weight_of(key: str, layer: BaseTunerLayer) -> AdapterWeight:
    """What the file stores for a layer."""
    if isinstance(layer, LoHaLayer):
        factors = (getattr(layer, f"hada_{name}")[ADAPTER].detach() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
        return LohaWeight(key, *factors, alpha=layer.alpha[ADAPTER])
    if isinstance(layer, LoKrLayer):
        large = (layer.lokr_w2[ADAPTER].detach() if ADAPTER in layer.lokr_w2 else
                 (layer.lokr_w2_a[ADAPTER].detach(), layer.lokr_w2_b[ADAPTER].detach()))
        return LokrWeight(key, layer.lokr_w1[ADAPTER].detach(), large, layer.scaling[ADAPTER])
    lora = LoraWeight(key, layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach(),
                      layer.lora_alpha[ADAPTER])
    if not hasattr(layer, "lengths"):
        return lora
    shape = (1, -1, 1, 1) if isinstance(layer.get_base_layer(), nn.Conv2d) else (1, -1)
    return DoraWeight(lora, layer.lengths.value().detach().view(shape), layer.lengths.columns(layer))


def is_convolution(module: nn.Module) -> bool:
    """1×1 convolutions count as linear: they are."""
    return isinstance(module, nn.Conv2d) and tuple(module.kernel_size) != (1, 1)
