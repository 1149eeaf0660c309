"""Weights into a model that was made without any: one tensor after the other, so that nothing is held twice."""
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import nn

from ..artifacts.tensor_files import Entry, finite
from ..errors import UserError
from ..memory.placement import Place, assign

Model = TypeVar("Model", bound=nn.Module)


def without_weights(make: Callable[[], Model]) -> Model:
    """What `make` makes, with all its tensors on the meta device."""
    with torch.device("meta"):
        return make()


def fill(model: nn.Module, entries: Mapping[str, Entry], dtype: torch.dtype, title: str, place: Place = assign):
    """Every parameter and every persistent buffer of `model`, from the entry of its name, in `dtype`, frozen, on the CPU or
    where `place` puts it.

    Raises UserError for what is missing, of another shape, or not finite. `title` is what people call the file.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise UserError(f"{title!r} is not whole: {missing[0]} is missing{_and_more(missing)}. Download the file again.")
    for name, empty in wanted.items():
        entry = entries[name]
        if tuple(entry.shape) != tuple(empty.shape):
            raise UserError(f"{title!r} holds {name} with the shape {list(entry.shape)}, and {list(empty.shape)} fits its "
                            "other layers. It is damaged, or of another kind of model.")
        tensor = finite(entry, title).tensor(dtype)
        layer, _, own = name.rpartition(".")
        place(model.get_submodule(layer), own, tensor)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                raise ValueError(f"{type(module).__name__}.{name} has no value in files and was made without one")


def _and_more(missing: list[str]) -> str:
    return f" and {len(missing) - 1} more" if len(missing) > 1 else ""
