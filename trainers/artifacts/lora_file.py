"""LoRA files of any maker, read into layers: the same numbers, whatever the tensors are called.

Names of the factors, by maker: kohya `lora_down`/`lora_up`, peft and ai-toolkit `lora_A`/`lora_B` (with `.default` too),
diffusers `lora.down`/`lora.up` and `_lora.down`/`_lora.up`. LoHa and LoKr as LyCORIS writes them.
"""
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor

from ..errors import UserError
from ..families.recognition import read_header
from .lora import LoraWeight
from .tensor_file import TensorFile

SUFFIXES = {
    "down": (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight", "_lora.down.weight",
             ".lora_linear_layer.down.weight"),
    "up": (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora.up.weight", "_lora.up.weight",
           ".lora_linear_layer.up.weight"),
    "mid": (".lora_mid.weight",),
    "alpha": (".alpha",),
}
PRODUCTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w2", "lokr_w1_a",
            "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


@dataclass
class FileLayer:
    """What a file holds of one layer, by the roles of `SUFFIXES`, `PRODUCTS` and "dora_scale"."""

    key: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    alpha_beside: float | None = None
    """An alpha that the file keeps in its metadata only."""

    @property
    def is_low_rank(self) -> bool:
        """Two factors and nothing else: such layers can be joined exactly."""
        return {"down", "up"} <= self.tensors.keys() <= {"down", "up", "alpha"}

    @property
    def alpha(self) -> float | None:
        return float(self.tensors["alpha"]) if "alpha" in self.tensors else self.alpha_beside

    def low_rank(self) -> LoraWeight:
        down, up = self.tensors["down"].float(), self.tensors["up"].float()
        return LoraWeight(self.key, down, up, float(len(down)) if self.alpha is None else self.alpha)

    def change(self) -> Tensor:
        """The change of the weight, float32 [out, in, …]. Raises UserError for a DoRA, whose change depends on the base."""
        if "dora_scale" in self.tensors:
            raise UserError(f"{self.key} is a DoRA layer: what it changes depends on the base model, so it cannot be merged "
                            "with others. Bake it into a checkpoint instead")
        named = {name: tensor.float() for name, tensor in self.tensors.items() if name != "alpha"}
        if "down" in named:
            return _low_rank_change(named, self.alpha)
        if "hada_w1_a" in named:
            rank = len(named["hada_w1_b"])
            return (1.0 if self.alpha is None else self.alpha / rank) * _hadamard(named, 1) * _hadamard(named, 2)
        if any(name.startswith("lokr") for name in named):
            return _kronecker(named, self.alpha)
        raise UserError(f"{self.key} holds {', '.join(named)}, which cannot be merged here")


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
    """Read a LoRA file whole. Raises UserError for what is none."""
    header, metadata = read_header(path)
    found, unknown = LoraFile(path.name, {}, metadata, []), []
    with TensorFile(path, header, metadata) as file:
        for name in file:
            key, role = _role(name)
            if not role:
                unknown.append(name)
                continue
            found.layers.setdefault(key, FileLayer(key)).tensors[role] = file.weight(name)
    for key in [key for key, layer in found.layers.items() if layer.tensors.keys() <= {"alpha", "dora_scale"}]:
        unknown.append(f"{key}.alpha")
        del found.layers[key]
    if not found.layers:
        raise UserError(f"{path.name!r} holds no LoRA layers. Choose a LoRA file.")
    for key, layer in found.layers.items():
        layer.alpha_beside = _alpha_beside(metadata, key, layer)
    return LoraFile(path.name, found.layers, metadata, unknown)


def _role(name: str) -> tuple[str, str]:
    for role, endings in SUFFIXES.items():
        for ending in endings:
            if name.endswith(ending):
                return name.removesuffix(ending), role
    match = re.fullmatch(rf"(.+)\.({'|'.join(PRODUCTS)}|dora_scale)(?:\.weight)?", name)
    return (match[1], match[2]) if match else (name, "")


def _alpha_beside(metadata: dict[str, str], key: str, layer: FileLayer) -> float | None:
    """peft keeps rank and alpha of a file in JSON in its metadata, under `lora_adapter_metadata` (diffusers 0.35)."""
    if "alpha" in layer.tensors or "lora_adapter_metadata" not in metadata:
        return None
    try:
        config = json.loads(metadata["lora_adapter_metadata"])
        part, _, module = key.partition(".")
        own = {name.partition(".")[2]: value for name, value in config.items() if name.partition(".")[0] == part}
        pattern = own.get("alpha_pattern") or {}
        alpha = next((value for name, value in pattern.items() if re.match(rf"(.*\.)?({name})$", module)), own["lora_alpha"])
        rank = len(layer.tensors["down"])
        return float(alpha) * rank**0.5 if own.get("use_rslora") else float(alpha)
    except (ValueError, KeyError, TypeError, AttributeError, re.error):
        return None


def all_changes(file: LoraFile) -> Iterator[tuple[str, Tensor]]:
    return ((key, layer.change()) for key, layer in file.layers.items())
