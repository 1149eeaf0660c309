"""Prodigy, which finds the learning rate itself, for groups with learning rates of their own."""
import sys
from collections.abc import Callable
from contextlib import redirect_stdout

import torch
from prodigyopt import Prodigy

from ..spec import OptimizerSpec


class GroupwiseProdigy(Prodigy):
    """Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101) in the settings of the diffusers examples.

    It knows one rate for all groups, or 0, and moves even groups whose rate has become 0. Here the spec's rate is
    Prodigy's, and the others are factors: with the rate 1 and 0.1 for a group, that group moves a tenth as far. The
    distance that Prodigy estimates is one for all groups.
    """

    def __init__(self, parameters: list[dict], spec: OptimizerSpec):
        for group in parameters:
            group["factor"] = group["lr"] / spec.learning_rate
        with redirect_stdout(sys.stderr):  # it prints, and standard output carries events
            super().__init__(
                parameters, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon,
                weight_decay=spec.weight_decay,  # pyright: ignore[reportArgumentType]  # untyped there, and 0 by default
                decouple=True, use_bias_correction=True, safeguard_warmup=True,
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None):
        groups, rates = self.param_groups, [group["lr"] for group in self.param_groups]
        common = max((rate / group["factor"] for group, rate in zip(groups, rates) if rate), default=0.0)
        scaled = [group for group, rate in zip(groups, rates) if rate and group["factor"] != 1]
        before = [[parameter.clone() for parameter in group["params"]] for group in scaled]
        resting = [parameter for group, rate in zip(groups, rates) if not rate for parameter in group["params"]]
        gradients = [parameter.grad for parameter in resting]
        for parameter in resting:
            parameter.grad = None
        for group, rate in zip(groups, rates):
            group["lr"] = common if rate else 0.0
        loss = super().step(closure)
        for group, rate in zip(groups, rates):
            group["lr"] = rate
        for group, values in zip(scaled, before):
            for parameter, value in zip(group["params"], values):
                parameter.copy_(value.lerp_(parameter, group["factor"]))
        for parameter, gradient in zip(resting, gradients):
            parameter.grad = gradient
        return loss
