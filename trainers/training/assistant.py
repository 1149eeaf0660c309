"""A LoRA that is on while a base is trained, off in previews and not in the result: what it does is not learned again.

Distilled bases are trained so: the assistant undoes the distillation for the time of the training, and images are made
without it, in as few steps as before (ostris' training adapters for FLUX.1 schnell and Z-Image Turbo). Its factors stand
beside the frozen layers, whose weights stay as they are, in 8 bits or away, and are there once.
"""
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifacts.layer_names import is_text
from ..artifacts.lora_file import FileLayer, read_lora
from ..artifacts.lora_renaming import describe, renamed, require_most, table_for
from ..errors import UserError
from ..families.protocol import Family
from ..spec import BaseModelSpec
from ..words import counted

CPU = torch.device("cpu")


class _Factors(nn.Module):
    """What is added beside one layer. The factors are in no state dict and among no parameters."""

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor):
        super().__init__()
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    def forward(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(F.conv2d(inputs, self.down, None, layer.stride, layer.padding, layer.dilation), self.up)
        return F.linear(F.linear(inputs, self.down), self.up)


class Assistant:
    """That of a base. Raises UserError for a file that is none for the base's family, or no plain LoRA."""

    def __init__(self, base: BaseModelSpec, family: Family):
        assert base.assistant is not None
        self.spec, self.base, self.family, self.is_on = base.assistant, base, family, True
        path = Path(self.spec.path)
        if not path.is_file():
            raise UserError(f"The assistant LoRA {self.spec.name!r} is not there. Refresh the node list and choose it "
                            "again.")
        file = read_lora(path)
        layers = {key: layer for key, layer in file.layers.items() if not is_text(key)}
        other = next((key for key, layer in layers.items() if not layer.is_low_rank), None)
        names = table_for(family.name, list(layers))
        if not layers or names is None:
            raise UserError(f"{file.name!r} cannot assist the training of {family.title}: it is {describe(file)}.")
        if other is not None:
            raise UserError(f"{other} of {file.name!r} is no layer of a plain LoRA, and only such can assist a "
                            "training. Make one of it with Merge LoRAs.")
        self.names = names
        self.parts = renamed(replace(file, layers=layers), names, model=f"a {family.title} model").all()
        self.file = self.parts[0]
        self.notes = [f"the assistant LoRA {file.name} is on with the strength {self.spec.strength:g} while training and in "
                      "validation, off in previews and not in the result", *self.file.remarks()]
        if left := len(file.layers) - len(layers):
            self.notes.append(f"{counted(left, 'layer')} of {file.name} of text encoders are left out: an assistant acts on "
                              "the denoiser alone")

    def require_fit(self):
        """Raise UserError when its layers are not those of the base, before anything of that is loaded."""
        empty = self.family.empty_denoiser(self.base)
        if empty is not None:
            placed = sum(len(parts) for _, parts in self._placed(empty))
            if missing := sum(len(part.layers) for part in self.parts) - placed:
                self.notes.append(f"{self.base.name} lacks {counted(missing, 'layer')} of {self.file.name}")

    def attach(self, denoiser: nn.Module, dtype: torch.dtype, device: torch.device = CPU):
        """Put it beside the layers of a denoiser that nothing else is beside yet. Computed with in `dtype`."""
        for layer, parts in self._placed(denoiser):
            weights = [part.low_rank() for part in parts]
            down = torch.cat([weight.down for weight in weights])
            up = torch.cat([self.spec.strength * weight.alpha / len(weight.down) * weight.up for weight in weights], dim=1)
            if isinstance(layer, nn.Conv2d):
                down, up = down.reshape(len(down), -1, *layer.kernel_size), up.reshape(*up.shape[:2], 1, 1)
            else:
                down, up = down.flatten(1), up.flatten(1)
            layer.add_module("assistant", _Factors(down.to(device, dtype), up.to(device, dtype)))
            layer.register_forward_hook(self._added)

    def _placed(self, denoiser: nn.Module) -> Iterator[tuple[nn.Module, list[FileLayer]]]:
        modules = {self._key(denoiser, name): layer for name, layer in denoiser.named_modules()
                   if isinstance(layer, (nn.Linear, nn.Conv2d))}
        wanted: dict[str, list[FileLayer]] = defaultdict(list)
        for file in self.parts:
            for key, part in file.layers.items():
                wanted[key].append(part)
        require_most(self.file, [key for key in wanted if key in modules], [key for key in wanted if key not in modules],
                     repr(self.base.name))
        for key in wanted.keys() & modules.keys():
            shape = _shape(modules[key])
            for part in wanted[key]:
                if part.shape[0] != shape[0] or prod(part.shape) != prod(shape):
                    raise UserError(f"{key} is {list(part.shape)} in the assistant LoRA {self.spec.name!r} and "
                                    f"{list(shape)} in {self.base.name!r}: the LoRA is for another model.")
        yield from ((layer, wanted[key]) for key, layer in modules.items() if key in wanted)

    def _key(self, denoiser: nn.Module, module_name: str) -> str:
        """kohya's name of a layer, whatever name the family's files get."""
        name = self.family.denoiser_key(denoiser, module_name)
        found = self.names.find(name)
        return found.key if found else name

    def _added(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The forward hook."""
        return output + cast("_Factors", layer.assistant)(layer, inputs[0]) if self.is_on else output

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the denoiser is what the base is with what was trained."""
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True


def _shape(layer: nn.Module) -> tuple[int, ...]:
    """Of a layer's weight, wherever that is kept."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    linear = cast("nn.Linear", layer)
    return linear.out_features, linear.in_features
