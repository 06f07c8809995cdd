"""Noise on some of a policy's weights, and the actor whose members act with it.

Letters: N rows, P population members, H action horizon, A model action dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from einops import repeat
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from pitune.policies import Actor, FlowPolicy, ModelInput
from pitune.rl import ranks
from pitune.rl.experience.sub_dict import sub_dict

MEMBER = "member"
"""Key of the member of each row (N,)."""
SEEDS = 2**62
"""Number of different seeds."""


class Perturbations:
    """Opposite noise of pairs of members on chosen weights.

    A pair's noise follows from its seed, on the CPU, so a checkpoint holds the seeds alone and
    every device has the same noise.

    Args:
        parameters: The chosen weights by name.
        num_pairs: Pairs of members. Members 2 i and 2 i + 1 have the noise of pair i, with + and -.
        std: Standard deviation of the noise [-].

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> noise = Perturbations({"weight": weight}, num_pairs=1, std=0.1)
        >>> with noise.member(0):
        ...     plus = weight.detach().clone()
        >>> with noise.member(1):
        ...     print(torch.equal(weight, -plus), bool(plus.any()))
        True True
        >>> weight.tolist()
        [0.0, 0.0]
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], num_pairs: int, std: float) -> None:
        self.parameters, self.num_pairs, self.std = dict(parameters), num_pairs, std
        self._kept: dict[int, dict[str, Tensor]] = {}
        self.draw()

    def draw(self) -> None:
        """Draw new noise, the same on all ranks."""
        self.set_seeds(ranks.of_first(torch.randint(SEEDS, (self.num_pairs,))))

    def set_seeds(self, seeds: Tensor) -> None:
        """Take the noise of seeds (pairs,)."""
        self.seeds, self._kept = seeds, {}

    def of_pair(self, pair: int) -> dict[str, Tensor]:
        """Return the standard-normal noise of a pair by the name of the weight."""
        if pair not in self._kept:
            generator = torch.Generator().manual_seed(int(self.seeds[pair]))
            self._kept[pair] = {
                name: torch.randn(value.shape, generator=generator).to(value.device)
                for name, value in self.parameters.items()
            }
        return self._kept[pair]

    @contextmanager
    def member(self, member: int) -> Iterator[None]:
        """Give the weights a member's noise while the context is open."""
        # members 2 i and 2 i + 1 share the noise of pair i, with opposite signs
        sign = 1 - 2 * (member % 2)
        noise = self.of_pair(member // 2)
        before = {name: value.detach().clone() for name, value in self.parameters.items()}
        try:
            with torch.no_grad():
                for name, value in self.parameters.items():
                    value.add_(sign * self.std * noise[name])
            yield
        finally:
            with torch.no_grad():
                # copied back and not subtracted, because rounding would move the weights
                for name, value in self.parameters.items():
                    value.copy_(before[name])


class PerturbedActor(Actor):
    """An actor whose neighboring environments belong to the members in turn.

    Row i belongs to member i modulo P. The members of one turn start from the same noise, as they
    play the same starts. As deployed it acts without a perturbation.

    Args:
        policy: The policy.
        perturbations: Noise of the members on its weights.

    Example:
        >>> actor = PerturbedActor(policy, perturbations)  # doctest: +SKIP
        >>> actor(td)["member"].tolist()  # doctest: +SKIP
        [0, 1, 2, 3, 0, 1, 2, 3]
    """

    def __init__(self, policy: FlowPolicy, perturbations: Perturbations) -> None:
        super().__init__(policy)
        self.perturbations = perturbations
        self.out_keys.append(MEMBER)

    def evaluated(self) -> Actor:
        """Return an actor without perturbations, which does not explore."""
        return Actor(self.policy)

    @torch.no_grad()
    def explore(self, td: TensorDictBase, noise: Tensor | None) -> TensorDictBase:
        num, device = 2 * self.perturbations.num_pairs, self.policy.device
        if len(td) % num:
            raise ValueError(
                f"num_envs={len(td)} must be a multiple of the {num} members of "
                f"num_pairs={self.perturbations.num_pairs}"
            )
        if noise is None:  # one for each turn (N / P, H, A)
            noise = repeat(self.policy.draw_noise(len(td) // num), "n h a -> (n p) h a", p=num)
        member = torch.arange(len(td), device=device) % num
        # each member decides for its own rows (N / P)
        parts = []
        for index in range(num):
            rows = slice(index, None, num)  # of the host and of the device alike
            with self.perturbations.member(index):
                obs = sub_dict(td.select(*self.in_keys), rows).contiguous()
                entries = self.deployed_entries(ModelInput.of(obs), noise[rows].contiguous())
            parts.append(TensorDict(entries, batch_size=[len(obs)]))
        # P x (N / P) -> (N)
        acted: TensorDict = torch.stack(parts, 1).reshape(-1)  # type: ignore[assignment, arg-type]
        return td.update(acted).set(MEMBER, member)
