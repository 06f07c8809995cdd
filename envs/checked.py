"""The checks around every adapter: what goes in is well formed, what comes out is finite and fresh.

Letters: E envs, A action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pitune.envs.vector_env import EnvSpec, Expert, Observation, StepResult, VectorEnv


class CheckedEnv:
    """A `VectorEnv` that checks another one.

    Actions must have the right shape and be finite; they are clipped to the bounds, and how many
    entries that changed is counted. Observations and rewards must be finite. Every tensor that is
    returned is a copy, so a simulator that reuses its buffers cannot rewrite a rollout.

    Args:
        env: The adapter.
    """

    def __init__(self, env: VectorEnv) -> None:
        self.env = env
        self.spec: EnvSpec = env.spec
        self.low = torch.tensor(env.spec.action_low, device=env.spec.device)
        self.high = torch.tensor(env.spec.action_high, device=env.spec.device)
        self.num_entries = 0
        """Action entries so far, of active environments."""
        self.num_clipped = 0
        """How many of them were outside the bounds."""

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        num = self.spec.num_envs if env_idx is None else len(env_idx)
        if seed.shape != (num,):
            raise ValueError(
                f"seed of shape {tuple(seed.shape)} must be ({num},): one seed per environment "
                "that is reset"
            )
        return self._checked(self.env.reset(seed, env_idx), "reset")

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        expected = (self.spec.num_envs, self.spec.action_dim)
        if tuple(action.shape) != expected:
            raise ValueError(
                f"action of shape {tuple(action.shape)} must be {expected} for {self.spec.id}: "
                f"{expected[0]} environments, {expected[1]} action dimensions"
            )
        if not torch.isfinite(action[active]).all():
            rows = (~torch.isfinite(action).all(-1) & active).nonzero().flatten().tolist()
            raise ValueError(f"action is not finite in environments {rows} of {self.spec.id}")
        clipped = torch.maximum(torch.minimum(action, self.high), self.low)
        self.num_entries += int(active.sum()) * self.spec.action_dim
        self.num_clipped += int((clipped != action)[active].sum())
        obs, reward, terminated, truncated, info = self.env.step(clipped, active)
        if not torch.isfinite(reward).all():
            rows = (~torch.isfinite(reward)).nonzero().flatten().tolist()
            raise ValueError(f"reward is not finite in environments {rows} of {self.spec.id}")
        return StepResult(
            self._checked(obs, "step"),
            reward.float().clone(),
            terminated.clone(),
            truncated.clone(),
            {key: value.clone() for key, value in info.items()},
        )

    def render(self) -> Tensor:
        return self.env.render()

    def expert(self) -> Expert:
        return self.env.expert()

    def close(self) -> None:
        self.env.close()

    def _checked(self, obs: Observation, where: str) -> Observation:
        state = obs["state"]
        if not torch.isfinite(state).all():
            rows = (~torch.isfinite(state).all(-1)).nonzero().flatten().tolist()
            raise ValueError(
                f"state is not finite in environments {rows} of {self.spec.id} after {where}"
            )
        return {key: value.clone() for key, value in obs.items()}
