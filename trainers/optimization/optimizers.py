"""Optimizers by name, from a spec's OptimizerSpec."""
from typing import Any

import torch

from ..errors import UserError, reason_of
from ..spec import OptimizerSpec
from .parameter_group import ParameterGroup

STATE_BYTES = {"adamw": 8, "adamw_8bit": 3, "lion": 4, "prodigy": 16, "adafactor": 1, "sgd": 4}
"""What an optimizer remembers of every trained number, in bytes: float32 moments, or two of one byte with their scales;
Prodigy's start and sum of gradients besides; Adafactor only sums of rows and columns."""


def make_optimizer(spec: OptimizerSpec, groups: list[ParameterGroup], steps: int) -> torch.optim.Optimizer:
    """One optimizer over all groups, each with its own learning rate. From its "stop_step" on, which is its fraction of
    `steps`, a group is no longer trained."""
    parameters = [
        {"params": list(group.parameters.values()), "lr": group.learning_rate, "name": group.name,
         "stop_step": max(1, round(group.stop_at * steps))}
        for group in groups
    ]
    return _MAKERS[spec.name](parameters, spec)


def _adamw(parameters: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, weight_decay=spec.weight_decay,
        fused=True,  # one pass over all parameters instead of a dozen for each
    )


def _adamw_8bit(parameters: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Moments in 8 bits, by blocks (Dettmers et al. 2021, arXiv:2110.02861); those of small tensors stay in 32."""
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit(parameters, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, weight_decay=spec.weight_decay)


def _lion(parameters: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Steps of one size in the direction of the momentum's sign (Chen et al. 2023, arXiv:2302.06675)."""
    from lion_pytorch import Lion

    return Lion(parameters, lr=spec.learning_rate, betas=spec.betas, weight_decay=spec.weight_decay)


def _prodigy(parameters: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    from .prodigy import GroupwiseProdigy

    return GroupwiseProdigy(parameters, spec)


def _adafactor(parameters: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Second moments as sums of rows and columns, no first (Shazeer & Stern 2018, arXiv:1804.04235). Rates are the
    groups' own: neither relative to the parameters nor falling with the steps by themselves."""
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, scale_parameter=False,
                     relative_step=False)


def _sgd(parameters: list[dict[str, Any]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Nesterov's momentum, beta1; weight decay is part of the gradient here."""
    momentum = spec.betas[0]
    return torch.optim.SGD(parameters, lr=spec.learning_rate, momentum=momentum, nesterov=momentum > 0,
                           weight_decay=spec.weight_decay)


_MAKERS = {"adamw": _adamw, "adamw_8bit": _adamw_8bit, "lion": _lion, "prodigy": _prodigy, "adafactor": _adafactor,
           "sgd": _sgd}


def require_support(spec: OptimizerSpec, device: torch.device):
    """Raise UserError when the optimizer cannot work on this device, which only a trial tells: older versions of
    bitsandbytes have no kernels for a CPU or for other makers' GPUs."""
    if spec.name != "adamw_8bit":
        return
    parameter = torch.nn.Parameter(torch.ones(64, 64, device=device))  # 4096 numbers: smaller tensors stay in 32 bits
    parameter.grad = torch.ones_like(parameter)
    try:
        make_optimizer(spec, [ParameterGroup("trial", 1e-3, {"parameter": parameter})], 1).step()
    except Exception as problem:  # a missing library, symbol or kernel: each version fails in its own way
        raise UserError(f"The optimizer adamw_8bit does not work on this device ({device.type}) with the installed "
                        f"bitsandbytes: {reason_of(problem, 200)}. Choose adamw, or a newer bitsandbytes.") from problem

