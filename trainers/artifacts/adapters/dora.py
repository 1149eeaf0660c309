"""DoRA (Liu et al. 2024, arXiv:2402.09353): a LoRA whose sum with the base is scaled, column by column, to trained lengths.

In files of others LoHa and LoKr may have such magnitudes too; what they do to a change is here (`decomposed`).
"""
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from ...spec import LoraSpec
from ..layer_names.parts import DORA
from .format import stored
from .lora import LoraFormat, LoraWeight


class DoraFormat(LoraFormat):
    """Read like a LoRA; its magnitudes need the weight of the base."""

    title = "DoRA"
    network = "lycoris.kohya"

    def holds(self, parts: Collection[str]) -> bool:
        return DORA in parts and super().holds(parts)

    def arguments(self, spec: LoraSpec) -> dict[str, object]:
        return {"algo": "lora", "dora_wd": True, "wd_on_output": False}


def dora_scale(vector: Tensor, up: Tensor, dimensions: int) -> Tensor:
    """DoRA's magnitudes with all dimensions: peft's flat [out] becomes [out, 1, …]."""
    return vector.reshape(-1, *[1] * (dimensions - 1)) if vector.ndim == 1 and len(vector) == len(up) else vector


def decomposed(key: str, base: Tensor, change: Tensor, lengths: Tensor) -> Tensor:
    """The change of a DoRA layer (Liu et al. 2024, arXiv:2402.09353, eq. 5): W' · lengths / ‖W'‖ - W with W' = W + change.

    `lengths` are of input columns, [1, in, …], or of outputs, [out, 1, …] as in the paper; a square layer's are told apart
    by where their single dimension is.
    """
    rows, columns = base.shape[:2]
    if lengths.ndim < 2 or lengths.shape[:2] not in ((1, columns), (rows, 1)) or lengths[0, 0].numel() != 1:
        raise UserError(f"{key} is a DoRA layer whose magnitudes, {list(lengths.shape)}, do not fit its weight, "
                        f"{list(base.shape)}: it is for another model")
    merged = base + change
    by_rows = lengths.shape[:2] == (rows, 1)
    flat = merged.flatten(1) if by_rows else merged.transpose(0, 1).flatten(1)
    norms = flat.norm(dim=1) + torch.finfo(torch.float32).eps
    shape = [-1 if by_rows else 1, 1 if by_rows else -1, *[1] * (base.ndim - 2)]
    return merged * (lengths.reshape(shape) / norms.reshape(shape)) - base


EPSILON = torch.finfo(torch.float32).eps
"""ComfyUI and LyCORIS add this to a column's norm before they divide by it."""


@dataclass(frozen=True)
class Columns:
    """Of every input column (or input channel) [in], float32: the squared norm of the base W, the inner product of W and
    scale · up · down, and the squared norm of scale · up · down."""

    base: Tensor
    product: Tensor
    added: Tensor

    def norms(self) -> Tensor:
        """Of the columns of W + scale · up · down, a little more than zero."""
        return (self.base + 2 * self.product + self.added).clamp(min=0).sqrt() + EPSILON


def squared_norms(weight: Tensor) -> Tensor:
    """Of the input columns of a weight [out, in, …]: float32 [in]."""
    return weight.float().transpose(0, 1).flatten(1).square().sum(dim=1)


@torch.no_grad()
def compare_columns(weight: Tensor, down: Tensor, up: Tensor, scale: float, base: Tensor | None = None) -> Columns:
    """Of W [out, in, …] and the factors `down` [rank, in, …] and `up` [out, rank, …]; `up · down` is never made.

    `base` is squared_norms(weight), if it is known.
    """
    up, down = up.float().flatten(1), down.float().flatten(2) if down.ndim > 2 else down.float()[..., None]
    with torch.autocast(weight.device.type, enabled=False):  # it would multiply in half precision
        correlation = (up.T @ weight.float().flatten(1)).view_as(down)
        squared = torch.einsum("rs,sik->rik", up.T @ up, down)
    return Columns(
        squared_norms(weight) if base is None else base,
        scale * (correlation * down).sum(dim=(0, 2)),
        scale**2 * (squared * down).sum(dim=(0, 2)).clamp(min=0),
    )


@dataclass(frozen=True)
class DoraWeight:
    """A LoRA whose sum with the base is scaled, column by column, to `lengths` [1, in, (1, 1)].

    The change of a weight is (W + scale · up · down) · lengths / norms - W. On the input axis, because ComfyUI divides
    lengths on the output axis by the norms of the bare base.
    """

    lora: LoraWeight
    lengths: Tensor
    columns: Columns

    @property
    def key(self) -> str:
        return self.lora.key

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The lengths stay float32: rounding them would rescale the whole base by up to a two-thousandth (fp16)."""
        return self.lora.tensors(dtype) | {f"{self.key}.dora_scale": stored(self.lengths, torch.float32)}

    def change_norm(self) -> float:
        """Of factor · scale · up · down + (factor - 1) · W, from the columns."""
        factor, columns = self.lengths.flatten() / self.columns.norms(), self.columns
        squared = factor**2 * columns.added + 2 * factor * (factor - 1) * columns.product + (factor - 1)**2 * columns.base
        return float(squared.clamp(min=0).sum().sqrt())
