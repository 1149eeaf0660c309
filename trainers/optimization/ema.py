"""The running mean of the trained parameters, which is saved instead of their last values (Polyak & Juditsky 1992)."""
from collections.abc import Mapping
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import nn


class ParameterMean:
    """diffusers' EMAModel over named parameters, on their device and in float32.

    The decay is min(decay, 1 - (1 + steps)^-3/4): it begins at 0, so the values before training never count, and the mean
    of a short run is one over a fixed fraction of its steps.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float):
        self.parameters = dict(parameters)
        self.model = EMAModel(self.parameters.values(), decay=decay, use_ema_warmup=True, power=3 / 4, foreach=True)

    def update(self):
        """After every optimizer step. Processes whose parameters agree keep the same mean."""
        self.model.step(self.parameters.values())

    @contextmanager
    def applied(self):
        """Inside, the parameters hold the mean. Nothing is copied: the two trade places and back."""
        self._trade()
        try:
            yield
        finally:
            self._trade()

    def _trade(self):
        for parameter, mean in zip(self.parameters.values(), self.model.shadow_params):
            parameter.data, mean.data = mean.data, parameter.data

    def state_dict(self) -> dict:
        return {"steps": self.model.optimization_step,
                "means": {name: mean.cpu() for name, mean in zip(self.parameters, self.model.shadow_params)}}

    def load_state_dict(self, state: dict):
        self.model.optimization_step = state["steps"]
        for name, mean in zip(self.parameters, self.model.shadow_params):
            mean.copy_(state["means"][name])
