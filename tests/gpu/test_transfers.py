"""Copies between the host and CUDA that nobody waits for arrive whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device_runs import HORIZON, NUM_CHUNKS, STATE_ENV, algorithm_config, policy_of
from torch import Tensor

from pitune import envs, rl
from pitune.envs import CheckedEnv
from pitune.policies import FlowPolicy
from vision_policies import ENV

pytestmark = pytest.mark.gpu


class Recorded:
    """A simulator that keeps the actions it was given and the states it gave."""

    def __init__(self, env: Any) -> None:
        self.env, self.spec = env, env.spec
        self.actions: list[Tensor] = []
        self.states: list[Tensor] = []

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Any:
        return self.env.reset(seed, env_idx)

    def step(self, action: Tensor, active: Tensor) -> Any:
        result = self.env.step(action, active)
        self.actions.append(action.clone())
        self.states.append(result.obs["state"].clone())
        return result

    def close(self) -> None:
        self.env.close()


def test_a_host_simulator_gets_the_decided_actions_and_its_states_come_back(
    tiny_policy: Callable[..., FlowPolicy], cuda: torch.device
) -> None:
    simulator = Recorded(envs.make(STATE_ENV).env)
    policy = tiny_policy(horizon=HORIZON, executed=HORIZON).to(cuda)
    algorithm = rl.make(algorithm_config("ppo", Path()), policy)
    env = CheckedEnv(simulator)  # type: ignore[arg-type]
    rollout = rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0).collect().cpu()
    assert len(simulator.actions) == NUM_CHUNKS * HORIZON
    for decision in range(NUM_CHUNKS):
        steps = slice(decision * HORIZON, (decision + 1) * HORIZON)
        given = torch.stack(simulator.actions[steps], 1)  # (E, h, d)
        executed = rollout["action"][:, decision, : given.shape[1]]
        running = rollout["next", "done"][:, decision, 0] == 0  # of a chunk that was executed whole
        assert running.any()
        assert torch.allclose(given[running], executed[running].clamp(-1, 1), atol=1e-5)
        last = simulator.states[steps][-1]
        assert torch.equal(rollout["next", "state"][running, decision], last[running])


@pytest.mark.parametrize("name", ["ppo", "grpo", "fpo"])
def test_learning_with_prefixes_of_the_host_is_learning_with_those_of_the_device(
    name: str, tiny_policy: Callable[..., FlowPolicy], cuda: torch.device
) -> None:
    weights = []
    for gib in (4.0, 1e-9):
        torch.manual_seed(0)
        policy = policy_of("pi0 frozen", tiny_policy(), cuda)
        algorithm = rl.make(algorithm_config(name, Path(), prefix_gib=gib), policy)
        rollouts = rl.Rollouts(envs.make(ENV), algorithm, NUM_CHUNKS, seed=0)
        for _ in range(2):
            rollout = rollouts.collect()
            prefix: Any = rollout["prefix"]
            entry = next(iter(prefix.values(True, True)))
            assert (entry.device.type == "cpu") == (gib < 1)
            algorithm.update(rollout)
        weights.append([value.detach().clone() for value in algorithm.actor.policy.parameters()])
    for held, other in zip(*weights, strict=True):
        assert torch.allclose(held, other, atol=1e-5)
