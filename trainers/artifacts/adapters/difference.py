"""The full difference of a layer: no product at all, and never scaled. Others write it; it is not trained here."""
from torch import Tensor

from .format import AdapterFormat, Shape, Shapes, Tensors


class DifferenceFormat(AdapterFormat):
    title = "full difference"
    parts = ("diff",)

    def shape(self, shapes: Shapes) -> Shape | None:
        return tuple(shapes["diff"])

    def change(self, tensors: Tensors) -> Tensor:
        return tensors["diff"]
