"""Hypernetwork files as A1111 writes them (its `modules/hypernetworks/hypernetwork.py`), which ComfyUI's
HypernetworkLoader reads.

A `.pt` archive of one dict. Integer keys are widths of contexts; each holds the state dicts of two networks, for keys and
for values, with layers named by their place in a Sequential (`linear.0.weight`, …). The other keys describe the networks.
Only tensors and built-in containers are in it, so it is read without unpickling objects.
"""
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..files import temporary_beside
from .tensor_files import require_finite
from .torch_files import Refused, is_dense, load_plain

StateDict = Mapping[str, Tensor]
PARTS = ("keys", "values")


def save_hypernetwork(path: Path, networks: Mapping[int, tuple[StateDict, StateDict]],
                      description: Mapping[str, Any]):
    """Write the file whole or not at all. `networks` holds (for keys, for values) by width; `description` is what stands
    beside them. Raises UserError for values that are no numbers."""
    content: dict = {}
    for width, pair in networks.items():
        for part, state in zip(PARTS, pair, strict=True):
            for name, tensor in state.items():
                if not torch.isfinite(tensor).all():
                    raise UserError(f"The trained weight {name} for the {part} of width {width} holds values that are not "
                                    "numbers. Lower the learning rate and queue again.")
        # Copies: a tensor that is a view would take its whole storage into the file.
        content[int(width)] = tuple({name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
                                     for name, tensor in state.items()} for state in pair)
    with temporary_beside(path) as temporary:
        with open(temporary, "wb") as file:  # given a path, torch would write its random name into the archive
            torch.save({**content, **description}, file)
        os.replace(temporary, path)


def read_hypernetwork(path: Path) -> tuple[dict[int, tuple[StateDict, StateDict]], dict[str, Any]]:
    """(networks by width, everything else) of a file. Raises UserError for anything that is no hypernetwork, and for values
    that are no numbers. The tensors are views of the file."""
    try:
        content = load_plain(path)
    except Refused:
        raise UserError(f"{path.name!r} cannot be read as a hypernetwork: it is damaged, or holds more than tensors. "
                        "Choose another file.") from None
    networks = {key: value for key, value in content.items() if type(key) is int} if isinstance(content, dict) else {}
    sound = networks and all(width > 0 and _is_pair(pair) for width, pair in networks.items())
    states = [state for pair in networks.values() for state in pair] if sound else []
    numbers = sum(tensor.numel() for state in states for tensor in state.values())
    if not 0 < numbers <= path.stat().st_size:  # as views, they could be more
        raise UserError(f"{path.name!r} is not a hypernetwork: it holds no networks for keys and values. "
                        "Choose another file.")
    for width, pair in networks.items():
        for part, state in zip(PARTS, pair):
            for name, tensor in state.items():
                require_finite(tensor.detach(), f"{name} for the {part} of width {width}", path.name)
    return {width: tuple(pair) for width, pair in networks.items()}, {
        key: value for key, value in content.items() if isinstance(key, str)}


def _is_pair(value: Any) -> bool:
    """Whether these are two networks of ordinary tensors."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(
        isinstance(state, dict) and state and all(
            is_dense(tensor, (1, 2)) and tensor.is_floating_point() for tensor in state.values())
        for state in value)
