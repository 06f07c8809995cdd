"""A robot that goes on executing while its policy computes.

The chunk for the observation of step 0 arrives after `delay` steps. Until then the robot executes
the end of the chunk before, and then the new one from action `delay` on:

    step            0 .. delay - 1          delay .. h - 1
    executed        old[h : h + delay]      new[delay : h]

So one decision still executes h actions, and environments and evaluations need no change.
Letters: N rows, H action horizon, h executed actions, A model action dim, d robot action dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from pitune.policies.flow.delay import DelayConfig
from pitune.policies.flow.real_time import Remainder, check_delay, with_prefix
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import check_real_time, check_trained_delay
from pitune.policies.preprocessing.model_input import MODEL_INPUT, ModelInput

_ENSEMBLE_DECAY = 0.01
"""Fall of the weights of newer predictions, as in ACT and lerobot."""


def continue_chunk(
    policy: FlowPolicy,
    inputs: ModelInput,
    remainder: Tensor,
    delay: int | Tensor,
    noise: Tensor | None = None,
) -> Tensor:
    """Return chunks (N, H, d) [robot units] that continue the ones which are being executed.

    Relative actions are anchored anew to the present state.

    Args:
        policy: Acts as deployed, with the settings `sampler.real_time`.
        inputs: Observations (N).
        remainder: Actions (N, rest, d) [robot units] of the old chunks from the observation on.
        delay: Actions of the remainder that will be executed before the new chunk arrives, one
            number or one of each row (N,) int64. Rows with -1 have no old chunk.
        noise: Starting points (N, H, A), drawn by default. A trained noise source replaces them.

    Raises:
        ValueError: the policy has no settings, or was cloned for shorter delays.
    """
    config = policy.sampler.real_time
    if config is None:
        raise ValueError(
            "the policy has no settings for real-time chunking; set `sampler.real_time`, for "
            "example to RealTimeConfig(method='guided')"
        )
    longest = int(torch.as_tensor(delay).max())
    if config.method == "trained":
        check_trained_delay(longest, policy.info)
    # remainder in the network's space, relative to the present state
    state = inputs.robot_state.to(policy.device)
    old = policy.preprocessor.normalize_action(remainder.to(policy.device), state)
    delays = torch.as_tensor(delay, device=policy.device).expand(len(inputs))
    sampler = replace(policy.sampler, delay=DelayConfig(seam="real_time"))
    inputs = replace(inputs, remainder=old, delay=delays)
    return policy.replace(sampler=sampler).sample_chunk(inputs, noise)


class DelayedActor(TensorDictModuleBase):
    """TorchRL's actor interface to a deployed policy whose chunks arrive late.

    It remembers the last chunk of each environment, and begins anew where `elapsed` is 0. The first
    chunk of an episode is awaited.

    Args:
        policy: Acts as deployed.
        config: Delay and seam.
        seed: Seed of delays that are drawn.

    Raises:
        ValueError: the chunks end before the next one arrives, or the seam needs settings that the
            policy lacks, or the policy has a memory.

    Example:
        >>> from tensordict import TensorDict
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> sampler = SamplerConfig(execution_horizon=4)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=sampler)
        >>> actor = DelayedActor(policy, DelayConfig(steps=2))
        >>> td = TensorDict({"state": states[:3], "elapsed": torch.zeros(3, 1)}, batch_size=[3])
        >>> actor(policy.observation_preprocessor(())(td))["action"].shape
        torch.Size([3, 4, 2])
    """

    out_keys: list[str]
    """Written entries. They are declared because mypy does not see the base class's setter."""

    def __init__(self, policy: FlowPolicy, config: DelayConfig, seed: int = 0) -> None:
        super().__init__()
        if policy.has_memory:
            raise ValueError(
                "a delayed actor hands no memory (options.memory) on to the next decision; leave "
                "out the delay, or take a policy without a memory"
            )
        check_delay(config.highest, policy.sampler.execution_horizon, policy.chunk_shape[0])
        # the environment has no delay of its own
        policy = policy.replace(sampler=replace(policy.sampler, delay=DelayConfig()))
        if config.seam == "real_time":
            check_real_time(replace(policy.sampler, delay=config), policy.info)
        self.policy, self.config = policy, config
        self.in_keys, self.out_keys = [MODEL_INPUT, "elapsed"], ["action"]
        self._generator = torch.Generator().manual_seed(seed)
        # chunks (N, H, d) from the last observation on, and their predictions per step (N, H)
        self._chunk: Tensor | None = None
        self._count: Tensor | None = None

    @torch.no_grad()
    def forward(self, td: TensorDictBase) -> TensorDictBase:
        inputs, noise = ModelInput.of(td), td.get("noise", None)
        noise = None if noise is None else noise.to(self.policy.device)
        h = self.policy.sampler.execution_horizon
        begins = (td["elapsed"].flatten() == 0).to(self.policy.device)  # (N,)
        if self._chunk is None or len(self._chunk) != len(td):
            begins = torch.ones_like(begins)
        delay = self.config.draw(len(td), self._generator).to(begins.device)
        delay = delay.masked_fill(begins, -1)  # the first chunk of an episode is awaited
        if begins.all():
            chunk = self.policy.sample_chunk(inputs, noise)
            executed = chunk[:, :h]
            self._count = torch.ones(chunk.shape[:2], device=chunk.device)
        else:
            remainder = self._chunk[:, h:]  # type: ignore[index]
            chunk = self._next_chunk(inputs, remainder, delay, noise)
            executed = with_prefix(chunk, Remainder(remainder, delay))[:, :h]
        self._chunk = chunk
        return td.set("action", executed)

    def evaluated(self) -> DelayedActor:
        """Return this actor, which never explores."""
        return self

    def _next_chunk(
        self, inputs: ModelInput, remainder: Tensor, delay: Tensor, noise: Tensor | None
    ) -> Tensor:
        """Return the chunks (N, H, d) after running ones, and first ones where there are none."""
        if self.config.seam == "real_time":
            return continue_chunk(self.policy, inputs, remainder, delay, noise)
        fresh = self.policy.sample_chunk(inputs, noise)
        return (
            fresh if self.config.seam == "plain" else self._ensembled(fresh, remainder, delay < 0)
        )

    def _ensembled(self, fresh: Tensor, remainder: Tensor, begins: Tensor) -> Tensor:
        """Return the weighted mean (N, H, d) of all predictions of each step.

        Prediction i of a step weighs exp(-0.01 * i), the oldest one most.
        """
        length = remainder.shape[1]
        count = torch.zeros(fresh.shape[:2], device=fresh.device)  # (N, H)
        if self._count is not None:
            count[:, :length] = self._count[:, fresh.shape[1] - length :]
        count[begins] = 0
        # sum of the weights of the old predictions: 1 + r + ... + r^(count - 1)
        ratio = torch.exp(torch.tensor(-_ENSEMBLE_DECAY))
        weight = ratio**count
        old_weight = (1 - weight) / (1 - ratio)
        old = torch.nn.functional.pad(remainder, (0, 0, 0, fresh.shape[1] - length))
        self._count = count + 1
        mean = old_weight[..., None] * old + weight[..., None] * fresh
        return mean / (old_weight + weight)[..., None]
