"""The state of a run: everything that a checkpoint holds so that training goes on as if it had never stopped.

One list of parts is written and read. Each part has `state_dict` and `load_state_dict`; what they give is tensors and
built-in containers only, which are read back without unpickling objects.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import UserError
from ..run_folder import Run

VERSION = 1
"""Of the state. Those without a version are older and hold the same parts."""


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Parameters:
    """The trained parameters by name, stored on the CPU."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]):
        self.parameters = parameters

    def state_dict(self) -> dict[str, Any]:
        return {name: parameter.detach().cpu() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]):
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


@dataclass(frozen=True)
class RunState:
    """The parts by name; None for what this run does not have."""

    parts: Mapping[str, Stateful | None]

    def save(self, run: Run, step: int):
        run.save_state(step, {"version": VERSION, **{
            name: part.state_dict() for name, part in self.parts.items() if part is not None}})

    def load(self, run: Run) -> int:
        """Restore the newest checkpoint that can be read; returns its step, 0 where there is none. Raises UserError for one
        that this version cannot go on from."""
        found = run.load_state()
        if found is None:
            return 0
        step, state = found
        version = state.get("version", 0)
        missing = [name for name, part in self.parts.items() if part is not None and name not in state]
        if version > VERSION or missing:
            lacks = f" and lacks {', '.join(missing)}" if missing else ""
            raise UserError(f"The checkpoint of step {step} of {run.name!r} is of another version of FineTune{lacks}, so "
                            "the run cannot go on from it. Update the pack, or choose another name to start anew.")
        for name, part in self.parts.items():
            if part is not None and state[name]:
                part.load_state_dict(state[name])
        return step
