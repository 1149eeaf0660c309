"""Hypernetworks: small networks in front of the keys and values of attention, as A1111 trains and ComfyUI applies them.

Every context x that goes into `to_k` and `to_v` becomes x + h(x). There is one pair of networks h for each width of x, and
all attentions of that width share it: the file knows widths only.
"""
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import randomness
from ..artifacts.hypernetwork import save_hypernetwork
from ..errors import UserError
from ..families.protocol import Family
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved, SavedFile
from ..spec import BaseModelSpec, HypernetworkSpec, RunSpec
from .protocol import Parts, trainable

ACTIVATIONS = {
    "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish, "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid, "softsign": nn.Softsign, "mish": nn.Mish,
}
"""What the names mean to A1111 and ComfyUI: "swish" is Hardswish to both. "linear" is no activation at all."""


def activates_output(spec: HypernetworkSpec) -> bool:
    """Whether the last linear layer is followed by the activation. With layer norm ComfyUI always adds it: there it takes
    the norm for the last layer. Files say so, which lets A1111 build the same network."""
    return spec.activation != "linear" and (spec.activate_output or spec.layer_norm)


class Network(nn.Module):
    """h: float [..., width] → [..., width]. Its layers have the names and numbers of A1111's files; dropout has no layer,
    because it is for training only and would shift the numbers."""

    def __init__(self, width: int, spec: HypernetworkSpec):
        """Draws the first weights from the global generator. Where it can be, h is zero at first: training starts from
        the base as it is."""
        super().__init__()
        self.dropout = spec.dropout
        widths, layers = [int(width * multiple) for multiple in spec.layer_structure], []
        for place, (inputs, outputs) in enumerate(pairwise(widths), start=2):
            layers.append(nn.Linear(inputs, outputs))
            _initialize(layers[-1], spec)
            if spec.activation != "linear" and (place < len(widths) or activates_output(spec)):
                layers.append(ACTIVATIONS[spec.activation]())
            if spec.layer_norm:
                layers.append(nn.LayerNorm(outputs))
        self.linear = nn.Sequential(*layers)
        last = layers[-1]
        if isinstance(last, (nn.Linear, nn.LayerNorm)):  # behind an activation zeros could stay: ReLU passes no gradient
            nn.init.zeros_(last.weight)

    def forward(self, context: Tensor) -> Tensor:
        first, *others = self.linear
        hidden = first(context)
        for layer in others:
            if isinstance(layer, nn.Linear):
                hidden = nn.functional.dropout(hidden, self.dropout, self.training)
            hidden = layer(hidden)
        return hidden


Pair = tuple[Network, Network]
"""For keys, for values."""


def _initialize(layer: nn.Linear, spec: HypernetworkSpec):
    """A1111's choices; its normal distribution has the standard deviation 0.01, and biases are zero."""
    distribution, _, shape = spec.initialization.partition(" ")
    nn.init.zeros_(layer.bias)
    if distribution == "normal":
        nn.init.normal_(layer.weight, std=0.01)
    elif distribution == "xavier":
        (nn.init.xavier_uniform_ if shape == "uniform" else nn.init.xavier_normal_)(layer.weight)
    else:
        fill = nn.init.kaiming_uniform_ if shape == "uniform" else nn.init.kaiming_normal_
        fill(layer.weight, nonlinearity="leaky_relu" if spec.activation == "leakyrelu" else "relu")


class Hypernetwork:
    kind = "hypernetwork"
    requires = frozenset({"hypernetwork"})

    def __init__(self, spec: HypernetworkSpec, learning_rate: float):
        self.spec, self.learning_rate = spec, learning_rate
        self.networks: dict[int, Pair] = {}
        """By the width of what goes in."""

    def trained_encoders(self, family: Family, base: BaseModelSpec) -> frozenset[str]:
        return frozenset()

    def hidden_words(self) -> tuple[str, ...]:
        return ()

    def trains_base(self) -> bool:
        return False

    def check(self, family: Family, spec: RunSpec) -> list[str]:
        widths, both = self._widths(family, spec.base), family.attention_widths(spec.base)
        narrow = [(multiple, width) for multiple in self.spec.layer_structure for width in widths if multiple * width < 1]
        if narrow:
            multiple, width = narrow[0]
            raise UserError(f"layer_structure holds {multiple:g}, which makes a layer of no width at all from the width "
                            f"{width} of the base. Use {1 / min(widths):.2g} or more.")
        notes = []
        shared = both["self-attention"] & both["cross-attention"] & set(widths)
        if self.spec.widths != "all" and shared:
            notes.append(f"self-attention and cross-attention of this base have the width {min(shared)} in common, and a "
                         f"hypernetwork acts on a width: it is trained and applied in both, not in {self.spec.widths} alone")
        if self.spec.activation == "sigmoid" and activates_output(self.spec) and not self.spec.layer_norm:
            notes.append("a sigmoid at the output is 0.5 before anything is learned, so the first previews are not the "
                         "base's; switch activate_output off if the training does not recover from that")
        return notes

    def _widths(self, family: Family, base: BaseModelSpec) -> list[int]:
        widths = family.attention_widths(base)
        chosen = widths if self.spec.widths == "all" else {self.spec.widths}
        return sorted(set().union(*(widths[attention] for attention in chosen)))

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        denoiser = parts.denoiser.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.derive(seed, randomness.INITIALIZATION))
            self.networks = {width: (Network(width, self.spec), Network(width, self.spec))
                             for width in self._widths(parts.family, parts.base)}
        for keys, _ in self.networks.values():
            # What is added to all keys alike cancels in the softmax of attention. Its gradient would be nothing but
            # rounding, which Adam blows up to full steps.
            last = keys.linear[-1]
            if isinstance(last, (nn.Linear, nn.LayerNorm)):
                last.bias.requires_grad_(False)
        for name, layer in denoiser.named_modules():
            part = name.rpartition(".")[2]
            if part in ("to_k", "to_v") and isinstance(layer, nn.Linear) and layer.in_features in self.networks:
                keys, values = self.networks[layer.in_features]
                layer.register_forward_pre_hook(partial(_add, keys if part == "to_k" else values))
        # Part of the denoiser, so that they move, train and are wrapped with it.
        networks = nn.ModuleDict({str(width): nn.ModuleList(pair) for width, pair in self.networks.items()})
        denoiser.hypernetwork = networks
        return [ParameterGroup("hypernetwork", self.learning_rate, trainable(networks))]

    def regularizer(self) -> None:
        return None

    def after_step(self, step: int):
        pass

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> Saved:
        path = folder / f"{name}.pt"
        states = {width: (keys.state_dict(), values.state_dict()) for width, (keys, values) in self.networks.items()}
        save_hypernetwork(path, states, self._description(name, parts.base, metadata))
        return Saved(
            files=(SavedFile.at("hypernetwork", path),), change_norm=change_norm(self.networks),
            widths=tuple(sorted(self.networks)),
            parameters=sum(tensor.numel() for pair in states.values() for state in pair for tensor in state.values()))

    def _description(self, name: str, base: BaseModelSpec, metadata: Mapping[str, str]) -> dict[str, Any]:
        """A1111's entries; what they mean is in its `Hypernetwork.save`. Its hash of the checkpoint would need all of the
        base's bytes; readers live without it."""
        spec = self.spec
        return {
            "step": int(metadata.get("ss_steps", 0)), "name": name, "layer_structure": list(spec.layer_structure),
            "activation_func": spec.activation, "is_layer_norm": spec.layer_norm,
            "weight_initialization": "".join(word.capitalize() for word in spec.initialization.split()),
            # ComfyUI never switches a file's dropout off, and missing means True to A1111 but False to ComfyUI.
            "use_dropout": False, "last_layer_dropout": False, "activate_output": activates_output(spec),
            "sd_checkpoint": None, "sd_checkpoint_name": Path(base.name.replace("\\", "/")).stem,
        }


def _add(network: Network, layer: nn.Module, arguments: tuple) -> tuple:
    context, *others = arguments
    return context + network(context).to(context.dtype), *others


@torch.no_grad()
def change_norm(networks: Mapping[int, Pair]) -> float:
    """Root of the mean squares of h(x), summed over all networks, for contexts x of the unit normal distribution: about
    what the layer norms in front of attention and behind the text encoder give."""
    total = 0.0
    for width, pair in networks.items():
        contexts = torch.randn((256, width), generator=randomness.generator(0))
        for network in pair:
            training, parameter = network.training, next(network.parameters())
            total += network.eval()(contexts.to(parameter)).square().mean().item()
            network.train(training)
    return total**0.5
