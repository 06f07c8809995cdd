"""State values. Letters: N rows, S state dim."""

from __future__ import annotations

from itertools import pairwise

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from policies import Preprocessor


class ValueCritic(TensorDictModuleBase):
    """V(observation, time): reads the robot's state and how much of the episode's time is used.

    The time matters where a time limit ends the episode: without it the value of a state would be
    an average over how much time is left. A network of its own, not a head on the policy, so that
    its gradients do not disturb the pretrained weights.

    Args:
        preprocessor: Scales the state as the policy does; shared, and not trained.
        hidden: Widths of the hidden layers.
    """

    def __init__(self, preprocessor: Preprocessor, hidden: tuple[int, ...] = (256, 256)) -> None:
        super().__init__()
        self.in_keys, self.out_keys = ["state", "elapsed"], ["state_value"]
        self._preprocessor = [
            preprocessor
        ]  # in a list: not a submodule, its buffers are the policy's
        widths = (preprocessor.model_state_dim + 1, *hidden)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.SiLU()]
        head = nn.Linear(widths[-1], 1)
        nn.init.normal_(head.weight, std=0.02)  # first advantages: from rewards
        nn.init.zeros_(head.bias)
        self.net = nn.Sequential(*layers, head)

    def forward(self, td: TensorDictBase) -> TensorDictBase:
        return td.set("state_value", self.value(td))

    def value(self, td: TensorDictBase) -> Tensor:
        """Return the values (N, 1) of observations (N)."""
        state = self._preprocessor[0].normalize_state(td["state"])
        return self.net(torch.cat([state, td["elapsed"]], dim=-1))


def explained_variance(value: Tensor, target: Tensor) -> float:
    """Return the share of the targets' variance that the values explain; below 0 they harm."""
    variance = target.var(correction=0)
    if variance < 1e-12:
        return float("nan")
    return float(1 - (target - value).var(correction=0) / variance)
