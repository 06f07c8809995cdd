"""Recorded attempts of mixed quality: an expert that errs at times, with its failures.

Data of robots are good and bad, also within an episode. Here the expert acts well in some segments
of an episode and at random in the others.
Letters: E envs, d robot action dim.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.envs import CheckedEnv, EpisodeSeeds, Starts
from pitune.envs.vector_env import Expert
from pitune.rl.experience.collect import play_round, table_of
from pitune.rl.experience.demonstrations import Demonstrations


class ErringExpert:
    """An expert that holds a random action in some segments of time.

    Args:
        expert: Acts in the other segments.
        low: Least action (d).
        high: Greatest action (d).
        num_envs: E.
        error_share: Share of the segments that are random [-].
        segment: Length of a segment [control steps].
        generator: Draws the segments and their actions.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> env, low, high = Reach(2), torch.full((2,), -1.0), torch.ones(2)
        >>> _ = env.reset(torch.tensor([0, 1]))
        >>> random = torch.Generator().manual_seed(0)
        >>> ErringExpert(env.expert(), low, high, 2, 0.5, 4, random).act().shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        expert: Expert,
        low: Tensor,
        high: Tensor,
        num_envs: int,
        error_share: float,
        segment: int,
        generator: torch.Generator,
    ) -> None:
        self.expert, self.low, self.high = expert, low, high
        self.error_share, self.segment, self.generator = error_share, segment, generator
        self.errs = torch.zeros(num_envs, dtype=torch.bool)
        self.held = torch.zeros(num_envs, len(low))
        self.num_steps = 0

    def act(self) -> Tensor:
        """Return the actions (E, d) [robot units]."""
        if self.num_steps % self.segment == 0:
            # a new segment: which environments err (E,), and the action that they hold (E, d)
            draws = torch.rand(len(self.errs), generator=self.generator)
            self.errs = draws < self.error_share
            share = torch.rand(self.held.shape, generator=self.generator)
            low, high = self.low.cpu(), self.high.cpu()
            self.held = low + (high - low) * share
        self.num_steps += 1
        action = self.expert.act()
        return torch.where(self.errs[:, None].to(action.device), self.held.to(action), action)


def collect_attempts(
    env: CheckedEnv, num_episodes: int, seed: int, *, error_share: float, segment: int = 4
) -> Demonstrations:
    """Collect episodes of an erring expert, with their rewards and their success.

    Args:
        env: A simulator with an expert.
        num_episodes: Number of episodes. Those that end first do not count more than others.
        seed: Seed of the starts and of the errors.
        error_share: Share of the segments of time in which it acts at random [-].
        segment: Length of a segment [control steps].

    Raises:
        ValueError: the environment reports no success.

    Example:
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach"))  # doctest: +SKIP
        >>> table = collect_attempts(env, 100, seed=0, error_share=0.6)  # doctest: +SKIP
        >>> table.solved().float().mean()  # doctest: +SKIP
        tensor(0.6154)
    """
    spec = env.spec
    if not spec.success_signal:
        raise ValueError(
            f"{spec.id} reports no success, which the episodes are judged by; report "
            "info['success'], one boolean at each step"
        )
    seeds = EpisodeSeeds(spec.num_envs, seed, "demonstrations", starts=Starts.of(spec))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(spec.num_envs, device=spec.device)
    kept: list[TensorDict] = []
    # whole rounds of all environments, so that short episodes are not preferred
    while len(kept) < num_episodes:
        kept += _round(env, rows, seeds.next(rows), error_share, segment, generator)
    return table_of(kept[:num_episodes], spec)


def _round(
    env: CheckedEnv,
    rows: Tensor,
    seeds: Tensor,
    error_share: float,
    segment: int,
    generator: torch.Generator,
) -> list[TensorDict]:
    """Play one episode in each environment (E,), and return those of working simulators."""

    def erring() -> ErringExpert:
        errors = error_share, segment, generator
        return ErringExpert(env.expert(), env.low, env.high, len(rows), *errors)

    played = play_round(env, rows, seeds, erring)
    episodes = []
    for i in range(len(rows)):
        if not played.broken[i]:
            steps = played.episode(i)
            steps["success"] = played.solved[i].expand(len(steps))
            episodes.append(steps)
    return episodes
