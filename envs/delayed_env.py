"""The chunk environment of a robot that goes on executing while its policy computes.

The chunk for the observation of step 0 arrives after `delay` steps. Until then the robot executes
the end of the chunk before, and then the new one from action `delay` on:

    step            0 .. delay - 1          delay .. h - 1
    executed        old[h : h + delay]      new[delay : h]

So one decision still executes h actions. The rest of the old chunk and the delay are a part of the
observation, because the next state depends on them. The first chunk of an episode is awaited.

Letters: E envs, h executed actions, R steps of a remainder, d robot action dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Unbounded

from pitune.envs.checked import CheckedEnv
from pitune.envs.chunk_env import ChunkEnv
from pitune.envs.seeding import EpisodeSeeds
from pitune.envs.vector_env import Observation


class DelayedChunkEnv(ChunkEnv):
    """E simulators that execute chunks (E, h + R, d) [robot units] which arrive late.

    Besides the entries of `ChunkEnv` there are `remainder` (E, R, d) [robot units], the actions of
    the old chunk from the observation on, and `delay` (E,), how many of them are executed before
    the new chunk arrives. An episode's first decision has no old chunk: zeros, and a delay of -1.
    The first `delay` actions of the new chunk are never executed.

    Args:
        env: The checked simulator.
        execution_horizon: h.
        seeds: Seeds of the episodes.
        num_episodes: See `ChunkEnv`.
        preprocess: See `ChunkEnv`. It gets `remainder` and `delay` too.
        record_success: See `ChunkEnv`.
        last_action: See `ChunkEnv`.
        device: See `ChunkEnv`.
        remainder_steps: R.
        draw_delay: `(number, generator) -> delays (number,)` int64 of decisions, at most R and h.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=4))
        >>> chunk_env = DelayedChunkEnv(
        ...     env,
        ...     2,
        ...     EpisodeSeeds(4, seed=0, split="train"),
        ...     remainder_steps=1,
        ...     draw_delay=lambda number, generator: torch.ones(number, dtype=torch.int64),
        ... )
        >>> rollout = chunk_env.rollout(3)
        >>> rollout["action"].shape, rollout["delay"][0].tolist()
        (torch.Size([4, 3, 3, 2]), [-1, 1, 1])
    """

    def __init__(
        self,
        env: CheckedEnv,
        execution_horizon: int,
        seeds: EpisodeSeeds,
        num_episodes: int | Tensor | None = None,
        preprocess: Callable[[TensorDictBase], TensorDictBase] | None = None,
        record_success: bool | None = None,
        last_action: bool = False,
        device: torch.device | None = None,
        *,
        remainder_steps: int,
        draw_delay: Callable[[int, torch.Generator], Tensor],
    ) -> None:
        spec = env.spec
        # old chunks, as plain attributes that the base class's constructor reads
        self._rest = torch.zeros(
            spec.num_envs, remainder_steps, spec.action_dim, device=spec.device
        )
        self._delay = torch.full((spec.num_envs,), -1, device=spec.device)
        self._draw_delay = draw_delay
        self._generator = torch.Generator().manual_seed(_delay_seed(seeds))
        args = (env, execution_horizon, seeds, num_episodes, preprocess, record_success)
        super().__init__(*args, last_action, device)

    def _make_specs(self) -> None:
        super()._make_specs()
        n, device, steps = self.batch_size[0], self.device, self._rest.shape[1]
        observation = self.observation_spec
        observation["remainder"] = Unbounded(self._rest.shape, device=device)
        observation["delay"] = Unbounded(torch.Size((n,)), dtype=torch.int64, device=device)
        self.observation_spec = observation
        # a whole plan (E, h + R, d)
        num = self.execution_horizon + steps
        low, high = (x.to(device).expand(n, num, -1) for x in (self.env.low, self.env.high))
        self.action_spec = Bounded(low, high, shape=low.shape, device=device)

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        begins = torch.ones_like(self._delay, dtype=torch.bool)
        begins = begins if mask is None else mask.flatten().to(self.home)
        self._rest = torch.where(begins[:, None, None], 0.0, self._rest)
        self._delay = torch.where(begins, -1, self._delay)
        return super()._reset(tensordict, **kwargs)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        plan, h = tensordict["action"].to(self.home), self.execution_horizon
        num = h + self._rest.shape[1]
        if plan.shape[:2] != (self.batch_size[0], num):
            raise ValueError(
                f"action chunk of shape {tuple(plan.shape)} must be "
                f"{(self.batch_size[0], num, self.env.spec.action_dim)}: environments, "
                "execution_horizon and the remainder of a late chunk, action dim"
            )
        # the old chunk until the new one arrives
        old = torch.nn.functional.pad(self._rest, (0, 0, 0, num - self._rest.shape[1]))
        is_old = torch.arange(num, device=plan.device) < self._delay[:, None]  # (E, h + R)
        executed = torch.where(is_old[..., None], old, plan)
        self._rest = executed[:, h:]
        delay = self._draw_delay(len(plan), self._generator)
        self._delay = delay.to(self._delay)
        chunk = TensorDict({"action": executed[:, :h]}, self.batch_size, device=self.home)
        return super()._step(chunk)

    def _added(self, obs: Observation, rows: slice | Tensor) -> TensorDict:
        old = {"remainder": self._rest, "delay": self._delay}
        return super()._added({**obs, **old}, rows)

    def _observation(self) -> dict[str, Tensor]:
        return {**super()._observation(), "remainder": self._rest, "delay": self._delay}


def _delay_seed(seeds: EpisodeSeeds) -> int:
    """Return the seed of the drawn delays, another one for each rollout that begins anew."""
    return hash((seeds.seed, seeds.split == "train", int(seeds.episodes.sum()))) % 2**31
