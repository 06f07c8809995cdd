"""The checks around every adapter: valid arguments, finite results, and copies of the results.

Letters: E envs, N rows, h executed actions, d robot action dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pitune.envs.deferred_checks import DeferredChecks
from pitune.envs.success import SuccessRule, check_rule
from pitune.envs.vector_env import (
    EnvSpec,
    Expert,
    Observation,
    StepResult,
    VectorEnv,
    draws_on_request,
)


class CheckedEnv:
    """A `VectorEnv` that checks the arguments and the results of another one.

    Actions must have the right shape and be finite. They are clipped to the bounds, and the clipped
    entries are counted. Observations and rewards must be finite. Every returned tensor is a copy,
    so a simulator that reuses its buffers cannot change a stored rollout.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> env = CheckedEnv(Reach(2))
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> result = env.step(torch.full((2, 2), 3.0), torch.tensor([True, False]))
        >>> (env.num_entries, env.num_clipped)
        (2, 2)

    Args:
        env: The environment to check.
        success: The definition of an episode's success, for all that use this environment.
        reward: Definition of the reward in words. The adapter's own by default.

    Raises:
        ValueError: the definition of success is unknown.
        ValueError: (from `reset`, `step` and `confirm`) an argument has the wrong shape, or a
            number is not finite.
    """

    def __init__(self, env: VectorEnv, success: SuccessRule = "once", reward: str = "") -> None:
        check_rule(success)
        self.env = env
        self.spec: EnvSpec = replace(
            env.spec, success_rule=success, reward=reward or env.spec.reward
        )
        self.low = torch.tensor(env.spec.action_low, device=env.spec.device)
        self.high = torch.tensor(env.spec.action_high, device=env.spec.device)
        self.num_calls = 0
        """Calls of `reset` and `step` so far. An owner of running episodes compares it with its
        own count, because the calls of others change these episodes."""
        self._checks = DeferredChecks(env.spec.device)
        # action entries of active environments, and those among them that were clipped
        self._entries = torch.zeros(2, dtype=torch.int64, device=env.spec.device)
        self.draws_on_request = draws_on_request(env)
        """Whether the adapter draws only the pictures that are read."""

    @property
    def num_entries(self) -> int:
        """Action entries of active environments so far."""
        return int(self._entries[0])

    @num_entries.setter
    def num_entries(self, value: int) -> None:
        self._entries[0] = value

    @property
    def num_clipped(self) -> int:
        """Those among them that were outside the bounds."""
        return int(self._entries[1])

    @num_clipped.setter
    def num_clipped(self, value: int) -> None:
        self._entries[1] = value

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        num_rows = self.spec.num_envs if env_idx is None else len(env_idx)
        if seed.shape != (num_rows,):
            raise ValueError(
                f"seed of shape {tuple(seed.shape)} must be ({num_rows},): one seed per "
                "environment that is reset"
            )
        self.num_calls += 1
        obs = self._check_obs(self.env.reset(seed, env_idx), "reset")
        if self.spec.seeded_tasks:
            self._check_tasks(obs, seed, env_idx)
        return obs

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        """Advance the active environments. See `DrawsOnRequest.step`.

        An adapter whose `step` takes no `pictures` draws all of them.
        """
        expected = (self.spec.num_envs, self.spec.action_dim)
        if tuple(action.shape) != expected:
            raise ValueError(
                f"action of shape {tuple(action.shape)} must be {expected} for {self.spec.id}: "
                f"{expected[0]} environments, {expected[1]} action dimensions"
            )
        self._checks.require(
            torch.isfinite(action).all(-1) | ~active,
            lambda rows: (
                f"action is not finite in environments {rows} of {self.spec.id}; "
                "check the policy's output"
            ),
        )

        # actions inside the bounds
        self.num_calls += 1
        clipped = torch.maximum(torch.minimum(action, self.high), self.low)
        outside = (clipped != action) & active[:, None]
        self._entries += torch.stack([active.sum() * self.spec.action_dim, outside.sum()])
        requested: dict[str, Any] = {}
        if pictures is not None and self.draws_on_request:
            requested = {"pictures": pictures}
        obs, reward, terminated, truncated, info = self.env.step(clipped, active, **requested)
        if self.env.spec.success_signal and not self.spec.success_signal:
            # some environments report success only where there is one
            self.spec = replace(self.spec, success_signal=True)
        self._checks.require(
            torch.isfinite(reward),
            lambda rows: (
                f"reward is not finite in environments {rows} of {self.spec.id}; an adapter must "
                "report such a row as truncated and invalid, with reward 0"
            ),
        )
        # copies, because an adapter may write the next step into the same memory
        return StepResult(
            self._check_obs(obs, "step"),
            reward.float().clone(),
            terminated.clone(),
            truncated.clone(),
            {key: value.clone() for key, value in info.items()},
        )

    def confirm(self, *numbers: Tensor) -> list[int]:
        """Read the checks of the steps so far and further integers, () or (N,), in one read.

        On the host every step was checked at once. On an accelerator an error is raised here, after
        a chunk of steps and before its results are used.

        Raises:
            ValueError: a number is not finite.
        """
        return self._checks.confirm(*numbers)

    def announce(self, chunk: Tensor, active: Tensor) -> None:
        """Hand a chunk (E, h, d) [robot units] to an adapter that takes its steps ahead.

        The same actions must follow by `step`, for the environments of `active` (E,) whose episodes
        go on. Only an adapter whose workers are on other machines has a method for it. A chunk that
        is not finite is not announced, because `step` rejects it.
        """
        announce = getattr(self.env, "announce", None)
        if announce is not None and torch.isfinite(chunk[active]).all():
            announce(torch.maximum(torch.minimum(chunk, self.high), self.low), active)

    def abandon(self) -> None:
        """Give up all running episodes, so that those that are not reset next can wait.

        Only an adapter that cannot hold a running environment still has a method for it.
        """
        abandon = getattr(self.env, "abandon", None)
        if abandon is not None:
            abandon()

    def render(self) -> Tensor:
        return self.env.render()

    def expert(self) -> Expert:
        return self.env.expert()

    def close(self) -> None:
        self.env.close()

    def _check_tasks(self, obs: Observation, seed: Tensor, env_idx: Tensor | None) -> None:
        """Raise ValueError if an episode has another task than its seed chose."""
        task_id = obs["task_id"] if env_idx is None else obs["task_id"][env_idx]
        chosen = (seed % len(self.spec.tasks)).to(task_id.device)
        if not torch.equal(task_id, chosen):
            raise ValueError(
                f"{self.spec.id} began episodes with task_id={task_id.tolist()}, but the seeds "
                f"chose {chosen.tolist()}; an adapter with seeded_tasks=True must play the task "
                "seed % len(tasks)"
            )

    def _check_obs(self, obs: Observation, method: str) -> Observation:
        """Return copies of the observation after a check of the state."""
        self._checks.require(
            torch.isfinite(obs["state"]).all(-1),
            lambda rows: (
                f"state is not finite in environments {rows} of {self.spec.id} after {method}; an "
                "adapter must keep the last finite state and report the row as invalid"
            ),
        )
        return {key: value.clone() for key, value in obs.items()}
