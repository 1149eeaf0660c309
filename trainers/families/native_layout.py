"""A transformer of diffusers with the layers of the original file: q, k and v are one linear layer again.

An adapter on such a layer is one that every program knows by the layer's native name, and one product is faster than three.
The code of diffusers' blocks stays as it is: where it asks for q, k or v, it gets rows of what the joined layer gave.
"""
from collections.abc import Sequence

from torch import Tensor, nn

from ..artifacts.layer_names.key_map import KeyMap


class _Joined:
    """A joined layer while a forward pass asks for one after the other of its rows: it runs once for all of them."""

    def __init__(self, parent: nn.Module, name: str, widths: Sequence[int]):
        # In a tuple, or torch would take the parent for a child. Asked by name, because peft puts an adapter in its place.
        self.parent, self.name, self.widths = (parent,), name, tuple(widths)
        self.given: Tensor | None = None
        self.parts: dict[int, Tensor] = {}

    def rows(self, inputs: Tensor, number: int) -> Tensor:
        if self.given is not inputs or number not in self.parts:
            layer = getattr(self.parent[0], self.name)
            self.given, self.parts = inputs, dict(enumerate(layer(inputs).split(self.widths, dim=-1)))
        part = self.parts.pop(number)
        if not self.parts:
            self.given = None  # nothing stays behind a forward pass
        return part


class JoinedRows(nn.Module):
    """Stands where diffusers has a linear layer of its own, and has no weights."""

    def __init__(self, joined: _Joined, number: int):
        super().__init__()
        self.joined, self.number = joined, number

    def forward(self, inputs: Tensor) -> Tensor:
        return self.joined.rows(inputs, self.number)


def to_native_layout(model: nn.Module, key_map: KeyMap):
    """Join layers, in place, of a model without weights (on the meta device): they are loaded afterwards."""
    from diffusers.models.normalization import AdaLayerNormContinuous

    class ShiftFirst(AdaLayerNormContinuous):
        """With the order of the original code, shift before scale; diffusers' has scale before shift."""

        def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
            shift, scale = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
            return self.norm(x) * (1 + scale)[:, None] + shift[:, None]

    for name, _ in list(model.named_modules()):
        if (parts := key_map.parts_from(name)) is not None:
            _join(model, *parts)
    for name, module in model.named_modules():
        rule = key_map.rule_of(f"{name}.linear")
        if rule is not None and rule.swapped != "never" and type(module) is AdaLayerNormContinuous:
            module.__class__ = ShiftFirst


def _join(model: nn.Module, name: str, rows: Sequence[str]):
    layers = [layer for each in rows if isinstance(layer := model.get_submodule(each), nn.Linear)]
    parent_name, _, leaf = name.rpartition(".")
    parent, widths, first = model.get_submodule(parent_name), [layer.out_features for layer in layers], layers[0]
    parent.add_module(leaf, nn.Linear(first.in_features, sum(widths), first.bias is not None, device=first.weight.device,
                                      dtype=first.weight.dtype))
    joined = _Joined(parent, leaf, widths)
    for number, each in enumerate(rows):
        owner, _, own = each.rpartition(".")
        setattr(model.get_submodule(owner), own, JoinedRows(joined, number))
