"""LoRA files of any maker, read into layers: the same numbers, whatever the tensors are called (`lora_keys`)."""
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .lora import LoraWeight
from .lora_keys import alphas_of_metadata, split_key
from .tensor_header import read_header
from .weights import Weights

ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid"}
"""Shorter words for the factors; other parts keep their names."""
PARTS = {role: part for part, role in ROLES.items()}
KNOWN = frozenset({
    "down", "up", "mid", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
})
"""Parts from which a change can be computed here."""


@dataclass
class FileLayer:
    """What a file holds of one layer: the names of its tensors by the roles of `KNOWN`. They are read when they are asked
    for, in float32."""

    key: str
    file: Weights
    names: dict[str, str] = field(default_factory=dict)
    alpha_beside: float | None = None
    """An alpha that the file keeps in its metadata only."""

    def tensor(self, role: str) -> Tensor:
        return self.file.weight(self.names[role])

    def tensors(self) -> dict[str, Tensor]:
        return {role: self.tensor(role) for role in self.names}

    @property
    def is_low_rank(self) -> bool:
        """Two factors and nothing else: such layers can be joined exactly."""
        return {"down", "up"} <= self.names.keys() <= {"down", "up", "alpha"}

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors in the file."""
        factor = next(name for role, name in self.names.items() if role not in ("alpha", "dora_scale"))
        return self.file.entries[factor].dtype

    @property
    def alpha(self) -> float | None:
        return float(self.tensor("alpha")) if "alpha" in self.names else self.alpha_beside

    def low_rank(self) -> LoraWeight:
        down, up = self.tensor("down"), self.tensor("up")
        return LoraWeight(self.key, down, up, float(len(down)) if self.alpha is None else self.alpha)

    def change(self, base: Tensor | None = None) -> Tensor:
        """The change of the weight, float32 [out, in, …]. That of a DoRA depends on the `base`: UserError without it."""
        named = {role: tensor for role, tensor in self.tensors().items() if role != "alpha"}
        lengths = named.pop("dora_scale", None)
        if lengths is not None and base is None:
            raise UserError(f"{self.key} is a DoRA layer: what it changes depends on the base model, so it cannot be merged "
                            "with others. Bake it into a checkpoint instead")
        if "down" in named:
            change = _low_rank_change(named, self.alpha)
        elif "hada_w1_a" in named:
            rank = len(named["hada_w1_b"])
            change = (1.0 if self.alpha is None else self.alpha / rank) * _hadamard(named, 1) * _hadamard(named, 2)
        elif any(name.startswith("lokr") for name in named):
            change = _kronecker(named, self.alpha)
        else:
            raise UserError(f"{self.key} holds {', '.join(named)}, which cannot be merged here")
        return change if lengths is None else _rescaled(self.key, base, change, lengths)


def _rescaled(key: str, base: Tensor, change: Tensor, lengths: Tensor) -> Tensor:
    """DoRA (Liu et al. 2024, arXiv:2402.09353, eq. 5) with lengths of input columns, [1, in, …]."""
    if lengths.ndim < 2 or lengths.shape[0] != 1 or lengths.shape[1] != base.shape[1]:
        raise UserError(f"{key} is a DoRA layer with lengths of outputs, which programs read in different ways. Train it "
                        "anew with lengths of inputs, or apply it when you draw instead of baking it")
    merged = base + change.reshape(base.shape)
    norms = merged.transpose(0, 1).flatten(1).norm(dim=1) + torch.finfo(torch.float32).eps
    shape = [1, -1, *[1] * (base.ndim - 2)]
    return merged * (lengths.reshape(shape) / norms.reshape(shape)) - base


def _low_rank_change(named: dict[str, Tensor], alpha: float | None) -> Tensor:
    down, up = named["down"], named["up"]
    scale = 1.0 if alpha is None else alpha / len(down)
    if "mid" in named:  # Tucker form of LoCon: mid [rank, rank, height, width] between 1×1 factors
        return scale * torch.einsum("orxy,rskl,sixy->oikl", up, named["mid"], down)
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def _hadamard(named: dict[str, Tensor], number: int) -> Tensor:
    first, second, tucker = (named.get(f"hada_{name}") for name in (f"w{number}_a", f"w{number}_b", f"t{number}"))
    if tucker is None:
        return first @ second
    return torch.einsum("ijkl,jr,ip->prkl", tucker, second, first)


def _kronecker(named: dict[str, Tensor], alpha: float | None) -> Tensor:
    """alpha counts only where a factor is itself a product (LyCORIS and ComfyUI agree)."""
    scale, sides = 1.0, []
    for number in (1, 2):
        side = named.get(f"lokr_w{number}")
        if side is None:
            first, second = named[f"lokr_w{number}_a"], named[f"lokr_w{number}_b"]
            scale = 1.0 if alpha is None else alpha / len(second)
            tucker = named.get("lokr_t2") if number == 2 else None
            side = first @ second if tucker is None else torch.einsum("ijkl,jr,ip->prkl", tucker, second, first)
        sides.append(side)
    small, large = sides
    return scale * torch.kron(small.reshape(*small.shape, *[1] * (large.ndim - 2)), large)


@dataclass
class LoraFile:
    """A LoRA file's layers by key, its metadata, and the names of tensors that fit no layer."""

    name: str
    layers: dict[str, FileLayer]
    metadata: dict[str, str]
    unknown: list[str]


def read_lora(path: Path) -> LoraFile:
    """What a LoRA file holds, from its header. Raises UserError for what is none."""
    metadata, file = read_header(path)[1], Weights.of_file(path)
    layers, unknown = {}, []
    for name in file:
        key, role = _role(name)
        if role:
            layers.setdefault(key, FileLayer(key, file)).names[role] = name
        else:
            unknown.append(name)
    for key in [key for key, layer in layers.items() if layer.names.keys() <= {"alpha", "dora_scale"}]:
        unknown += layers.pop(key).names.values()
    if not layers:
        raise UserError(f"{path.name!r} holds no LoRA layers. Choose a LoRA file.")
    ranks = {key: layer.file.shape(layer.names["down"])[0] for key, layer in layers.items()
             if "down" in layer.names and "alpha" not in layer.names}
    for key, alpha in alphas_of_metadata(metadata, ranks).items():
        layers[key].alpha_beside = alpha
    for name in unknown:  # what is left out may be all that is wrong with a file
        file.weight(name)
    return LoraFile(path.name, layers, metadata, unknown)


def _role(name: str) -> tuple[str, str]:
    """(layer, role), or (name, "") for what is not known here."""
    split = split_key(name)
    role = ROLES.get(split.part, split.part) if split else ""
    return (split.layer, role) if role in KNOWN else (name, "")
