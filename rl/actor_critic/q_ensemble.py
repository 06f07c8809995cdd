"""Ensembles of Q-functions with one vectorized forward for all critics, and their targets.

Letters: Q critics, B minibatch rows, D width of the input.
Sources: Chen et al. 2021 (REDQ: targets from a random subset of many critics), Ball et al. 2023
(RLPD: layer norm bounds the values of actions that were never taken), Lillicrap et al. 2015 (the
head's initialization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from pitune.rl import ranks
from pitune.rl.value_distribution import DistributionConfig

Pessimism = Literal["min", "mean"]


class EnsembleLinear(nn.Module):
    """Q parallel linear layers, each with the initialization of `nn.Linear`.

    Args:
        num: Q.
        narrow: Input width.
        wide: Output width.

    Example:
        >>> EnsembleLinear(2, 3, 4)(torch.zeros(2, 5, 3)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, num: int, narrow: int, wide: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(narrow)
        self.weight = nn.Parameter(torch.empty(num, narrow, wide).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, wide).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs (Q, B, wide) of inputs (Q, B, narrow)."""
        return torch.baddbmm(self.bias, x, self.weight)


class QEnsemble(nn.Module):
    """Q action values per input, with a layer norm before each activation as in RLPD.

    Args:
        in_dim: D, width of the concatenated inputs.
        num_members: Q.
        hidden: Widths of the hidden layers.
        distribution: Bins of categorical critics. By default each has one number.

    Example:
        >>> QEnsemble(3, num_members=2, hidden=(8,))(torch.zeros(5, 1), torch.zeros(5, 2)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        in_dim: int,
        num_members: int,
        hidden: Sequence[int],
        distribution: DistributionConfig | None = None,
    ) -> None:
        super().__init__()
        self.distribution = distribution or DistributionConfig()
        if num_members < 1:
            raise ValueError(f"num_members={num_members} must be at least 1")
        self.num_members = num_members
        widths = (in_dim, *hidden)
        self.layers = nn.ModuleList(EnsembleLinear(num_members, *pair) for pair in pairwise(widths))
        self.head = EnsembleLinear(num_members, widths[-1], self.distribution.num_outputs)
        # Near zero, as in DDPG. A target is the minimum over critics. If they differed at the
        # start, it would fall below every reward before the critics have learned a reward.
        nn.init.uniform_(self.head.weight, -3e-3, 3e-3)
        nn.init.zeros_(self.head.bias)

        # layer norms (Q, 1, width)
        self.scale = nn.ParameterList(torch.ones(num_members, 1, width) for width in hidden)
        self.shift = nn.ParameterList(torch.zeros(num_members, 1, width) for width in hidden)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the values (Q, B) of inputs (B, ...), which are joined along the last axis."""
        return self.distribution.value(self.output(*inputs)).squeeze(-1)

    def output(self, *inputs: Tensor) -> Tensor:
        """Return the outputs (Q, B, 1), or the logits of the bins (Q, B, num_bins), of inputs."""
        x = torch.cat(inputs, dim=-1).expand(self.num_members, -1, -1)  # (Q, B, D)
        for layer, scale, shift in zip(self.layers, self.scale, self.shift, strict=True):
            y = layer(x)
            x = torch.relu(layer_norm(y, y.shape[-1:]) * scale + shift)
        outputs: Tensor = self.head(x)
        return outputs


def make_target(ensemble: QEnsemble) -> QEnsemble:
    """Return a copy without gradients, for `polyak_update`."""
    return deepcopy(ensemble).requires_grad_(False)


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move the parameters of `target` towards those of `online` by the share `rate`, in place."""
    pairs = zip(target.parameters(), online.parameters(), strict=True)
    slow, fast = (list(column) for column in zip(*pairs, strict=True))
    torch._foreach_lerp_(slow, fast, rate)


def reduce_ensemble(values: Tensor, how: Pessimism, subset: int = 0) -> Tensor:
    """Return one value per row (B) from the values of all critics (Q, B).

    Args:
        values: Values (Q, B).
        how: Minimum or mean over critics.
        subset: Number of critics, drawn without replacement in each call. 0 takes all.

    Raises:
        ValueError: the subset is larger than the ensemble.
    """
    num = len(values)
    if not 0 <= subset <= num:
        raise ValueError(f"subset={subset} must be between 0 (all) and num_members={num}")
    if 0 < subset < num:
        chosen = torch.randperm(num, device=values.device)[:subset]
        values = values[ranks.of_first(chosen)]
    return values.amin(0) if how == "min" else values.mean(0)


def td_target(reward: Tensor, discount: Tensor, terminated: Tensor, next_value: Tensor) -> Tensor:
    """Return the value targets (B) of chunk transitions.

    Args:
        reward: Discounted reward of the chunk (B).
        discount: Factor of the next value, discount^duration (B).
        terminated: Whether the task ended (B) bool. The caller decides whether a time limit counts.
        next_value: Value of the observation after the chunk (B).
    """
    return reward + discount * (~terminated) * next_value


def mean_size(value: Tensor) -> Tensor:
    """Return the mean absolute value of values (B), those of all ranks, at least 1e-6."""
    return ranks.mean(value.detach().abs()).clamp(min=1e-6)
