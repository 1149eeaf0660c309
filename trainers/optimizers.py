"""Optimizers by name, from a spec's OptimizerSpec."""
import torch

from .methods.protocol import ParameterGroup
from .spec import OptimizerSpec


def make_optimizer(spec: OptimizerSpec, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """One optimizer over all groups, each with its own learning rate."""
    parameters = [
        {"params": list(group.parameters.values()), "lr": group.learning_rate, "name": group.name} for group in groups
    ]
    return torch.optim.AdamW(
        parameters, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, weight_decay=spec.weight_decay,
        fused=True,  # one pass over all parameters instead of a dozen for each
    )
