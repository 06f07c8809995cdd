"""The optimizers of all algorithms: Adam and AdamW, fused into one kernel where the device has it.

A fused step differs from torch's plain loop by rounding, at most 1e-7 of a parameter per step. A
run that was begun with the plain loop keeps it when it is resumed, because the saved state holds
the choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.autograd.graph import increment_version
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer

FUSED_DEVICES: tuple[str, ...] = ("cpu", "cuda")
"""Types of devices with a fused kernel."""


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Return Adam.

    Args:
        parameters: Trained parameters. Those without a gradient are left alone.
        lr: Step size [-].

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> adam([weight], lr=0.1).defaults["fused"]
        True
    """
    trained = list(parameters)
    return _tracked(torch.optim.Adam(_by_kind(trained), lr=lr, fused=has_fused_kernel(trained)))


def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float,
) -> torch.optim.AdamW:
    """Return AdamW.

    Args:
        parameters: Trained parameters. Those without a gradient are left alone.
        lr: Step size [-].
        betas: Decays of the two moments [-].
        weight_decay: Share of a parameter that a step of size 1 removes [-].

    Example:
        >>> adamw([nn.Parameter(torch.ones(2))], weight_decay=0.1).defaults["weight_decay"]
        0.1
    """
    trained = list(parameters)
    fused = has_fused_kernel(trained)
    return _tracked(
        torch.optim.AdamW(
            _by_kind(trained), lr=lr, betas=betas, weight_decay=weight_decay, fused=fused
        )
    )


def _by_kind(parameters: list[nn.Parameter]) -> list[Any]:
    """Return parameters, or groups of sharded and of other ones, which no kernel takes together."""
    sharded = [value for value in parameters if isinstance(value, DTensor)]
    if len(sharded) in (0, len(parameters)):
        return parameters
    others = [value for value in parameters if not isinstance(value, DTensor)]
    return [{"params": sharded}, {"params": others}]


def has_fused_kernel(parameters: Iterable[nn.Parameter]) -> bool | None:
    """Return True if the parameters' device has a fused kernel, else None, torch's own choice."""
    return all(value.device.type in FUSED_DEVICES for value in parameters) or None


OptimizerType = TypeVar("OptimizerType", bound=Optimizer)


def _tracked(optimizer: OptimizerType) -> OptimizerType:
    """Return the optimizer, whose steps count as changes of its parameters.

    A fused kernel does not raise the version of the parameters that it writes. Weights that are
    held in another precision are recognized by it (`pitune.policies.network.held_casts`).
    """
    optimizer.register_step_post_hook(_raise_versions)
    return optimizer


def _raise_versions(optimizer: Optimizer, *_: Any) -> None:
    changed = [p for group in optimizer.param_groups for p in group["params"]]
    increment_version([p for p in changed if p.grad is not None])
