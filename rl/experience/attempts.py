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
from pitune.envs.success import EpisodeSuccess
from pitune.envs.vector_env import Expert
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import Entry


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
        kept += _round(env, seeds.next(rows), error_share, segment, generator)
    kept = kept[:num_episodes]

    # one table
    steps: TensorDict = TensorDict.cat(kept)
    lengths = torch.tensor([len(episode) for episode in kept])
    columns = ("action", "reward", "terminated", "success")
    return Demonstrations(
        obs={str(key): steps[key] for key in steps.keys() if key not in columns},
        action=steps["action"],
        reward=steps["reward"],
        terminated=steps["terminated"],
        success=steps["success"],
        reward_definition=spec.reward,
        episode=torch.arange(len(kept)).repeat_interleave(lengths),
        tasks=spec.tasks,
    )


def _round(
    env: CheckedEnv, seeds: Tensor, error_share: float, segment: int, generator: torch.Generator
) -> list[TensorDict]:
    """Play one episode in each environment, and return those of working simulators."""
    num = env.spec.num_envs
    env.abandon()
    obs = env.reset(seeds.to(env.spec.device), torch.arange(num, device=env.spec.device))
    expert = ErringExpert(env.expert(), env.low, env.high, num, error_share, segment, generator)
    active = torch.ones(num, dtype=torch.bool, device=env.spec.device)
    broken, success = torch.zeros_like(active), EpisodeSuccess(num, env.spec.device)
    steps: list[TensorDict] = []
    live: list[Tensor] = []
    # one step of all environments, until the last episode has ended
    while active.any():
        action = torch.maximum(torch.minimum(expert.act(), env.high), env.low)
        result = env.step(action, active)
        entries: dict[str, Entry] = {**obs, "action": action}
        entries |= {"reward": result.reward, "terminated": result.terminated}
        steps.append(TensorDict(entries, batch_size=[num]).cpu())
        live.append(active.cpu())
        obs = result.obs
        success.add(result.info["success"], active)
        broken = broken | (result.info["invalid"] & active)
        active = active & ~(result.terminated | result.truncated)

    # the episodes, each with one success by the environment's rule (E,)
    solved = success.flags(env.spec.success_rule)["success"].cpu()
    table, mask = TensorDict.stack(steps), torch.stack(live)  # (steps, E)
    episodes = []
    for i in range(num):
        if not broken[i]:
            rows = table[mask[:, i], i]
            rows["success"] = solved[i].expand(len(rows))
            episodes.append(rows)
    return episodes
