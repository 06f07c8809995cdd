"""Actions for a robot's observation, in the formats of openpi's and lerobot's clients.

One call per decision. Training and evaluation use the same preprocessing.
Letters: H action horizon, A model action dim, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.model_input import ModelInput
from pitune.policies.preprocessing.robot_observation import instruction_of, robot_observation


def infer(
    policy: FlowPolicy, raw: Mapping[str, Any], noise: np.ndarray | None = None
) -> np.ndarray:
    """Return the whole chunk (H, d) [robot units] for one robot's observation.

    Args:
        policy: Acts as deployed, by the flow's ODE.
        raw: State, pictures (Y, X, 3) or (3, Y, X), uint8 or floats in [0, 1], and `prompt` (or
            lerobot's `task`), under the keys of openpi's or lerobot's clients, or as an environment
            gives them (`state`, `image/<camera>`).
        noise: Starting point (H, A). The default is a draw from the standard normal. A
            trained noise source replaces it.

    Raises:
        ValueError: an entry is missing, stands there twice with different values, or has a wrong
            shape, type or range; the noise has a wrong shape or is not finite; the policy has a
            memory, which `InferenceSession` hands on.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> infer(policy, {"observation/state": [0.0, 0.0, 0.0, 0.0]}).shape
        (8, 2)
    """
    if policy.has_memory:
        raise ValueError(
            "the policy has a memory (options.memory), which each decision of an episode hands on "
            "to the next one; take `InferenceSession(policy)` and its `infer` and `reset`"
        )
    return InferenceSession(policy).infer(raw, noise)


class InferenceSession:
    """The decisions of one robot, one episode after the other, with the memory of the policy.

    A policy without a memory decides as in `infer`. Sessions of one policy are independent.

    Args:
        policy: Acts as deployed, by the flow's ODE.

    Example:
        >>> from pitune.policies import SamplerConfig, small_policy
        >>> states, actions = torch.randn(50, 4), torch.randn(50, 2)
        >>> policy = small_policy(states, actions, action_horizon=8, sampler=SamplerConfig())
        >>> session = InferenceSession(policy)
        >>> session.infer({"observation/state": [0.0, 0.0, 0.0, 0.0]}).shape
        (8, 2)
        >>> session.reset()  # the next observation begins an episode
    """

    def __init__(self, policy: FlowPolicy) -> None:
        self.policy = policy
        self.reset()

    def reset(self) -> None:
        """Begin an episode, with an empty memory."""
        self.memory = self.policy.empty_memory(1)

    @torch.no_grad()
    def infer(self, raw: Mapping[str, Any], noise: np.ndarray | None = None) -> np.ndarray:
        """Return the whole chunk (H, d) [robot units] for the next observation. See `infer`.

        An observation that raises an error leaves the memory as it is.
        """
        policy = self.policy
        start = None if noise is None else _start(policy, noise)
        inputs = robot_input(policy, raw, self.memory)
        decision = policy.decide(inputs, start)
        self.memory = decision.marks.get("written_memory")
        state = inputs.robot_state.to(policy.device)
        return policy.preprocessor.unnormalize_action(decision.chunk, state)[0].cpu().numpy()


def robot_input(
    policy: FlowPolicy, raw: Mapping[str, Any], memory: Tensor | None = None
) -> ModelInput:
    """Return the network's input (1 row) for one robot's observation. See `infer`.

    Args:
        policy: Gives the preprocessing.
        raw: The observation.
        memory: Memory that the decision reads (1, memory, D), of a policy with one.
    """
    prompt = policy.preprocessor.config.prompt
    instructions: tuple[str, ...] = ()
    if prompt is not None or policy.condition_tasks:
        instructions = (instruction_of(prompt, raw),)
    return policy.model_input(observation(policy, raw), instructions, memory)


def observation(policy: FlowPolicy, raw: Mapping[str, Any]) -> TensorDict:
    """Return a robot's observation as a TensorDict with one row. See `infer`."""
    return robot_observation(policy.preprocessor.config, raw)


def _start(policy: FlowPolicy, noise: Any) -> Tensor:
    """Return the starting point (1, H, A) of a noise (H, A) or (1, H, A)."""
    start = torch.as_tensor(noise, device=policy.device).float()
    if start.shape not in (policy.chunk_shape, (1, *policy.chunk_shape)):
        raise ValueError(
            f"noise has shape {tuple(start.shape)}; it must be (H, A) = {policy.chunk_shape}, with "
            "the network's width A"
        )
    start = start.reshape(1, *policy.chunk_shape)
    if not start.isfinite().all():
        raise ValueError("noise has numbers that are not finite; draw it from the standard normal")
    return start
