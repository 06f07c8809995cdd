"""One rollout and one update of an algorithm on the pretend device, with their events.

As a command it prints the numbers of docs/devices.md:

    PYTHONPATH=.:tests/support python tests/support/counted_runs.py ppo dsrl
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pretend_device
import torch
from device_runs import HORIZON, NUM_CHUNKS, STATE_ENV, algorithm_config, policy_of, with_outcomes
from pretend_device import Events, PretendTensor
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from pitune import envs, policies, rl
from pitune.envs import CheckedEnv
from pitune.envs.chunk_env import ChunkEnv
from pitune.envs.vector_env import Observation, StepResult
from pitune.policies import FlowPolicy, Pi0
from pitune.policies.network.layers import Linear
from pitune.rl import gradient_step
from vision_policies import ENV


class DeviceSimulator:
    """A simulator of the host that gives and takes tensors of the device, without a transfer.

    Example:
        >>> DeviceSimulator(Reach(2)).spec.device.type  # doctest: +SKIP
        'pretend'
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self.spec = replace(env.spec, device=pretend_device.device())

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        rows = None if env_idx is None else _host(env_idx)
        return _on_device(self.env.reset(_host(seed), rows))

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        result = self.env.step(_host(action), _host(active))
        obs, *values, info = result
        reward, terminated, truncated = (PretendTensor(value) for value in values)
        return StepResult(_on_device(obs), reward, terminated, truncated, _on_device(info))

    def close(self) -> None:
        self.env.close()


def _host(value: Tensor) -> Tensor:
    return value.host if isinstance(value, PretendTensor) else value


def _on_device(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: PretendTensor(value.clone()) for key, value in values.items()}


@dataclass
class Counts:
    """Events of a rollout and of an update, and what they are divided by.

    Example:
        >>> counted("ppo").update.waits  # doctest: +SKIP
        9
    """

    rollout: Events
    update: Events
    gradient_steps: int
    """Steps of the optimizers."""
    losses: int
    """Losses of whole minibatches, with or without a gradient step."""
    control_steps: int
    """Calls of the simulator's `step` by the rollout."""
    decisions: int
    """Calls of the actor."""
    resets: int
    """Times that environments of the rollout began new episodes."""
    whole_episodes: bool
    """Whether the rollout ends with its episodes."""
    encoded: int
    """Observations that the update encoded."""
    decided: int
    """Decisions of the rollout, over all environments."""
    held: int
    """Parameters that the towers convert to their precision."""


@contextmanager
def gradient_steps() -> Iterator[list[int]]:
    """Give a list that each step of an optimizer is added to."""
    found: list[int] = []
    handle = register_optimizer_step_post_hook(lambda *_: found.append(1))
    try:
        yield found
    finally:
        handle.remove()


@contextmanager
def counted_calls(owner: Any, name: str, amount: Callable[[Any], int]) -> Iterator[list[int]]:
    """Give a list of an amount of the result of each call of a function."""
    found: list[int] = []
    original = getattr(owner, name)

    def counting(*args: Any, **keywords: Any) -> Any:
        result = original(*args, **keywords)
        found.append(amount(result))
        return result

    setattr(owner, name, counting)
    try:
        yield found
    finally:
        setattr(owner, name, original)


def make_env(on_device: bool, cameras: bool) -> CheckedEnv:
    """Return `mock/Reach`, on the host or on the device."""
    env = envs.make(replace(ENV, max_episode_steps=NUM_CHUNKS * HORIZON) if cameras else STATE_ENV)
    if not on_device:
        return env
    return CheckedEnv(DeviceSimulator(env.env))  # type: ignore[arg-type]


def counted(
    name: str,
    kind: str,
    state_policy: FlowPolicy,
    demonstrations: Path,
    on_device: bool = False,
    **settings: Any,
) -> Counts:
    """Return the events of the third rollout and update of an algorithm.

    Args:
        name: Algorithm, with its variant after a colon.
        kind: Of the policy, see `policy_of`.
        state_policy: The small policy for "state".
        demonstrations: File of demonstrations.
        on_device: Whether the simulator is on the device too.
        **settings: Further settings of the algorithm.
    """
    torch.manual_seed(0)
    policy = policy_of(kind, state_policy, pretend_device.device())
    algorithm = rl.make(algorithm_config(name, demonstrations, **settings), policy)
    env = make_env(on_device, policy.feature_dim > 0)
    rollouts = rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0)
    for _ in range(2):
        algorithm.update(rollouts.collect())
    calls = env.num_calls
    with (
        pretend_device.count() as rollout_events,
        counted_calls(ChunkEnv, "_reset", lambda _: 1) as resets,
    ):
        rollout = rollouts.collect()
    control_steps = env.num_calls - calls
    with_outcomes(rollout, algorithm)
    with (
        pretend_device.count() as events,
        gradient_steps() as steps,
        counted_calls(Pi0, "embed_prefix", lambda result: len(result[0])) as rows,
        counted_calls(gradient_step, "split_rows", lambda _: 1) as losses,
    ):
        algorithm.update(rollout)
    return Counts(
        rollout=rollout_events,
        update=events,
        gradient_steps=len(steps),
        losses=len(losses),
        control_steps=control_steps,
        decisions=rollout.batch_size[-1],
        resets=len(resets),
        whole_episodes=algorithm.needs.whole_episodes,
        encoded=sum(rows),
        decided=rollout.batch_size.numel(),
        held=sum(
            value.dtype != policy.network.compute_dtype
            for module in policy.network.paligemma_with_expert.modules()
            if isinstance(module, Linear)
            for value in module.parameters(recurse=False)
        ),
    )


def table(names: list[str]) -> Iterator[str]:
    """Return a line of numbers for each algorithm, with a policy of the state."""
    expert = policies.GemmaConfig(
        width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8
    )
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=HORIZON)
    for name in names:
        torch.manual_seed(0)
        state, action = torch.rand(64, 4), 2 * torch.rand(64, 2) - 1
        policy = policies.small_policy(
            state, action, action_horizon=HORIZON, sampler=sampler, expert=expert
        )
        for on_device in (False, True):
            found = counted(name, "state", policy, Path(), on_device)
            steps, update = found.gradient_steps, found.update
            indices = update.total("index") / steps
            yield (
                f"{name}, simulator on the {'device' if on_device else 'host'}: "
                f"{steps} gradient steps, {update.waits} waits ({update.waits / steps:.1f} per "
                f"step), {indices:.1f} indices from the host per step; {found.decisions} "
                f"decisions, {found.rollout.waits} waits "
                f"({found.rollout.waits / found.decisions:.1f} per decision)"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("\n".join(table(sys.argv[1:])))
