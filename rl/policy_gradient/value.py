"""The value critic of the policy-gradient algorithms.

Letters: N rows, B minibatch rows, S model state dim, R steps of a remainder, d robot action dim, D
width of a hidden layer.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from pitune.policies.preprocessing.critic_input import (
    critic_input,
    critic_state,
    old_chunk,
    old_chunk_dim,
)
from pitune.rl import ranks
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.value_distribution import DistributionConfig

RETURN_RATE = 0.05
"""Weight of a new batch in the running scale of returns, after the first 20 batches [-]."""
LEAST_RETURN_STD = 1e-2
"""Least standard deviation in the scale of returns [reward]."""


class ValueCritic(TensorDictModuleBase):
    """V(observation, time), from the robot's state and the used share of the episode's time.

    For a policy with pictures or a prompt, their pooled features are an input too.

    The time matters if a time limit ends the episode. Without it, the value of a state would be an
    average over the remaining times. The critic is a separate network and not a head on the policy,
    so that its gradients do not change the pretrained weights.

    Args:
        state_dim: S, or S + d with the last action, `FlowPolicy.critic_obs_dim`.
        feature_dim: Width of the policy's features, `FlowPolicy.feature_dim`, or 0 for none.
        hidden: Widths of the hidden layers.
        remainder: (R, d), steps of the old chunk that are an input under a decision delay, and the
            robot action dim, `FlowPolicy.remainder_shape`.
        memory: (memory, D) of the policy's memory that is an input, `FlowPolicy.memory_shape`.
        distribution: Bins of a categorical critic. By default it has one number.

    Example:
        >>> from tensordict import TensorDict
        >>> rows = {"model_input": {"state": torch.zeros(3, 4)}, "elapsed": torch.zeros(3, 1)}
        >>> ValueCritic(4).value(TensorDict(rows, batch_size=[3])).shape
        torch.Size([3, 1])
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(
        self,
        state_dim: int,
        feature_dim: int = 0,
        hidden: tuple[int, ...] = (256, 256),
        remainder: tuple[int, int] = (0, 0),
        memory: tuple[int, int] = (0, 0),
        distribution: DistributionConfig | None = None,
    ) -> None:
        super().__init__()
        self.distribution = distribution or DistributionConfig()
        self.in_keys, self.out_keys = ["model_input", "elapsed"], ["state_value"]
        self.state_dim, self.feature_dim, self.remainder = state_dim, feature_dim, remainder
        self.memory = memory
        if feature_dim:
            self.in_keys.append("features")

        # network
        extra = old_chunk_dim(*remainder) + math.prod(memory)
        widths = (state_dim + extra + 1 + feature_dim, *hidden)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.SiLU()]
        head = nn.Linear(widths[-1], self.distribution.num_outputs)
        nn.init.normal_(head.weight, std=0.02)  # small, so that rewards dominate first advantages
        nn.init.zeros_(head.bias)
        self.net = nn.Sequential(*layers, head)

        # scale of the returns, saved with the weights
        self.return_mean: Tensor
        self.return_std: Tensor
        self.num_rescaled: Tensor
        self.register_buffer("return_mean", torch.zeros(()))
        self.register_buffer("return_std", torch.ones(()))
        self.register_buffer("num_rescaled", torch.zeros(()))

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        return td.set("state_value", self.value(td))

    def value(self, td: TensorDictBase) -> Tensor:
        """Return the values (N, 1) of observations (N) [reward]. See `output`."""
        return self.distribution.value(self.output(td)) * self.return_std + self.return_mean

    def output(self, td: TensorDictBase, offset: Tensor | None = None) -> Tensor:
        """Return the network's outputs (N, 1), or the logits of the bins (N, num_bins).

        Args:
            td: Observations with `model_input`, `elapsed` and, if the policy has any, `features`.
            offset: Offset (N, D) of the first layer's output, from the genes of a population.
        """
        features = td["features"] if self.feature_dim else None
        inputs = sub_dict(td, "model_input")
        state, last_action = inputs["state"], inputs.get("last_action", None)
        state = critic_state(state, last_action, state.shape[-1] < self.state_dim)
        old = old_chunk(
            inputs.get("remainder", None),
            inputs.get("delay", None),
            inputs["state"],
            self.remainder,
        )
        memory = inputs["memory"] if math.prod(self.memory) else None
        x = self.net[0](critic_input(state, features, td["elapsed"], old, memory))
        outputs: Tensor = self.net[1:](x if offset is None else x + offset)
        return outputs

    def scaled(self, value: Tensor) -> Tensor:
        """Return values in the network's scaled units, which `rescale` changes."""
        return (value - self.return_mean) / self.return_std

    @torch.no_grad()
    def rescale(self, target: Tensor) -> None:
        """Update the scale to the mean and deviation of value targets (B, 1), of all ranks.

        The last layer changes with the scale, so that no value changes.
        Source: van Hasselt et al. 2016 (PopArt).
        """
        # running mean and standard deviation
        self.num_rescaled += 1
        rate = max(RETURN_RATE, 1 / float(self.num_rescaled))
        old_mean, old_std = self.return_mean.clone(), self.return_std.clone()
        new_square = ranks.mean(target.square())
        square = (1 - rate) * (old_std.square() + old_mean.square()) + rate * new_square
        self.return_mean.lerp_(ranks.mean(target), rate)
        variance = (square - self.return_mean.square()).clamp(min=LEAST_RETURN_STD**2)
        self.return_std.copy_(variance.sqrt())

        # last layer in the new scale
        head: nn.Linear = self.net[-1]  # type: ignore[assignment]
        head.weight.mul_(old_std / self.return_std)
        head.bias.mul_(old_std).add_(old_mean - self.return_mean).div_(self.return_std)


def explained_variance(value: Tensor, target: Tensor) -> float:
    """Return the share of the targets' variance that the values explain.

    Below 0 the values are worse than the mean of the targets.
    """
    variance = ranks.variance(target)
    if variance < 1e-12:
        return float("nan")
    return float(1 - ranks.variance(target - value) / variance)
