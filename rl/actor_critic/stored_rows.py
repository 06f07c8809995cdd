"""The rows that an actor-critic's memory stores, of rollouts and of demonstrations.

Letters: N rows, E envs, T chunk decisions, H action horizon, h executed actions.
"""

from __future__ import annotations

from functools import cached_property

import torch
from tensordict import TensorDict, TensorDictBase

from pitune.policies import FlowPolicy, ModelInput
from pitune.policies.network.context import pack
from pitune.rl.experience.demonstrations import IS_PAD, Demonstrations
from pitune.rl.experience.sub_dict import Entry, sub_dict
from pitune.rl.experience.transitions import encode_next, in_parts, normalize_chunk, transitions


class LearnerRows:
    """Replay rows with `obs`, `chunk` and, under `next`, `obs`.

    Args:
        policy: The trained policy.
        keep_prefix: Whether rows hold encoded prefixes in the place of pictures and prompts.
        demonstrations: Demonstrations, or None without any.

    Example:
        >>> rows = LearnerRows(policy, keep_prefix=False)  # doctest: +SKIP
        >>> memory.push(rows.of_rollout(rollout))  # doctest: +SKIP
    """

    def __init__(
        self, policy: FlowPolicy, keep_prefix: bool, demonstrations: Demonstrations | None = None
    ) -> None:
        self.policy, self.keep_prefix = policy, keep_prefix
        self.demonstrations = demonstrations

    def of_rollout(self, rollout: TensorDictBase) -> TensorDictBase:
        """Return the valid decisions of a rollout (E, T) as rows (N)."""
        obs, next_obs = self._stored_obs(rollout), self._stored_obs(sub_dict(rollout, "next"))
        if self.keep_prefix:
            obs["prefix"] = rollout["prefix"]
            next_obs["prefix"] = encode_next(rollout, rollout["prefix"], self.encode_prefix)
        before: dict[str, Entry] = {"obs": obs, "chunk": normalize_chunk(self.policy, rollout)}
        return transitions(rollout, before, {"obs": next_obs})

    def of_demonstrations(self) -> TensorDict:
        """Return the demonstrations as rows (N)."""
        table, horizon = self._table, self.policy.sampler.execution_horizon
        rows: TensorDictBase = table.transitions(horizon).to(self.policy.device)
        obs, next_obs = self._stored_obs(rows), self._stored_obs(sub_dict(rows, "next"))
        if self.keep_prefix:
            prefix = self._demonstrated_prefix
            obs["prefix"], next_obs["prefix"] = prefix, prefix[table.step_after(horizon)]
        after = TensorDict({"obs": next_obs, "elapsed": rows["next", "elapsed"]}, [len(rows)])
        transition_rows = rows.exclude("action", "next", *table.obs)
        transition_rows["obs"], transition_rows["next"] = obs, after
        return transition_rows.set("chunk", normalize_chunk(self.policy, rows))

    def demonstrated(self, num_steps: int) -> TensorDict:
        """Return the observations and next `num_steps` actions of demonstrated steps (N)."""
        rows: TensorDictBase = self._table.chunks(num_steps).to(self.policy.device)
        obs = self._stored_obs(rows).update(rows.select("action", IS_PAD, strict=False))
        return obs.set("prefix", self._demonstrated_prefix) if self.keep_prefix else obs

    @torch.no_grad()
    def encode_prefix(self, rows: TensorDictBase) -> TensorDict:
        """Return the prefixes of observations (N) in the format of the memory."""
        return in_parts(rows, lambda part: pack(self.policy.encode_prefix(ModelInput.of(part))))

    @cached_property
    def _demonstrated_prefix(self) -> TensorDict:
        """Prefixes of the demonstrated observations (N), encoded once."""
        return self.encode_prefix(self._table.chunks(1))

    @property
    def _table(self) -> Demonstrations:
        """The demonstrations, which the learner loads if its settings need them."""
        if self.demonstrations is None:
            raise ValueError("there are no demonstrations")
        return self.demonstrations

    def _stored_obs(self, rows: TensorDictBase) -> TensorDictBase:
        """Return the stored entries of observations, without their prefix."""
        obs = rows.select("model_input")
        if self.keep_prefix:  # the prefix replaces pictures and tokens
            stored = sub_dict(rows, "model_input").exclude("images", "tokens", "token_mask")
            obs["model_input"] = stored
        return obs
