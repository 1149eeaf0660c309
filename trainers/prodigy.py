"""Prodigy, which finds the learning rate itself, for groups with learning rates of their own."""
import sys
from contextlib import redirect_stdout

import torch
from prodigyopt import Prodigy

from .spec import OptimizerSpec


class GroupwiseProdigy(Prodigy):
    """Prodigy (Mishchenko & Defazio 2023, arXiv:2306.06101) in the settings of the diffusers examples.

    It knows one rate for all groups, or 0, and moves even groups whose rate has become 0. Here the largest rate is
    Prodigy's, and every group takes the part of Prodigy's step that its rate is of the largest: with rates 1 and 0.1 the
    second group moves a tenth as far. The distance that Prodigy estimates is one for all groups.
    """

    def __init__(self, parameters: list[dict], spec: OptimizerSpec):
        with redirect_stdout(sys.stderr):  # it prints, and standard output carries events
            super().__init__(
                parameters, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, weight_decay=spec.weight_decay,
                decouple=True, use_bias_correction=True, safeguard_warmup=True,
            )

    @torch.no_grad()
    def step(self, closure=None):
        groups, rates = self.param_groups, [group["lr"] for group in self.param_groups]
        largest = max(rates)
        partial = [(group["params"], rate / largest) for group, rate in zip(groups, rates) if 0 < rate < largest]
        before = [[parameter.clone() for parameter in parameters] for parameters, _ in partial]
        resting = [parameter for group, rate in zip(groups, rates) if rate == 0 for parameter in group["params"]]
        gradients = [parameter.grad for parameter in resting]
        for parameter in resting:
            parameter.grad = None
        for group, rate in zip(groups, rates):
            group["lr"] = largest if rate else 0.0
        loss = super().step(closure)
        for group, rate in zip(groups, rates):
            group["lr"] = rate
        for (parameters, share), values in zip(partial, before):
            torch._foreach_lerp_(values, parameters, share)
            torch._foreach_copy_(parameters, values)
        for parameter, gradient in zip(resting, gradients):
            parameter.grad = gradient
        return loss
