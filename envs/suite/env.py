"""A suite of simulators that step many environments in one call.

Each member is a `VectorEnv` with all E environments, and environment i is played by the member of
its present task. The rows of the others wait, which costs no step. Simulators whose environments
need much memory have a `suite_factory` of their own (`sub_env.SuiteSubEnv`).

Letters: E envs, N rows, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pitune.envs.config import EnvConfig
from pitune.envs.suite.layout import check_same_specs
from pitune.envs.vector_env import (
    EnvSpec,
    Expert,
    Observation,
    StepResult,
    VectorEnv,
    draws_on_request,
)


class SuiteEnv:
    """Several environments of one layout as one environment with several tasks.

    The seed of an episode is `task_id + num_tasks * start`, and the member's own seed is `start`.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> env = SuiteEnv("mock/[Reach,Again]", [Reach(4), Reach(4)])
        >>> env.reset(torch.tensor([0, 1, 2, 3]))["task_id"].tolist()
        [0, 1, 0, 1]

    Args:
        suite_id: The name of the suite.
        members: The simulator of each task, each with E environments.

    Raises:
        ValueError: the layouts differ, or a member has several tasks itself.
    """

    def __init__(self, suite_id: str, members: Sequence[VectorEnv]) -> None:
        self.members = list(members)
        self.spec = replace(
            _suite_spec(suite_id, [member.spec for member in members]),
            tasks_without_expert=tuple(i for i, env in enumerate(members) if not _has_expert(env)),
        )
        self.task_id = torch.zeros(self.spec.num_envs, dtype=torch.int64, device=self.spec.device)
        """Present task of each environment (E,)."""
        self._obs: Observation = {}
        self._draws_on_request = [draws_on_request(member) for member in members]
        # members that have begun episodes, because others have nothing to draw
        self._begun = [False] * len(self.members)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        rows = torch.arange(self.spec.num_envs) if env_idx is None else env_idx
        rows = rows.to(self.task_id.device)
        start, task_id = seed // len(self.members), seed % len(self.members)
        self.task_id[rows] = task_id.to(rows.device)
        for index, member in enumerate(self.members):
            chosen = (task_id == index).nonzero().flatten()
            if len(chosen):
                place = rows[chosen.to(rows.device)]
                self._take(member.reset(start[chosen], place), place)
                self._begun[index] = True
        return self._observation()

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        """Advance the active environments. See `DrawsOnRequest.step`."""
        zeros = torch.zeros(self.spec.num_envs, device=self.spec.device)
        reward, flags = zeros, [zeros.bool() for _ in range(4)]
        for index, member in enumerate(self.members):
            # environments whose present task is this member's (E,)
            mask = active & (self.task_id == index)
            if not mask.any():
                continue
            # a member that draws all its pictures takes no request
            requested: dict[str, Any] = {}
            if pictures is not None and self._draws_on_request[index]:
                requested = {"pictures": pictures & mask}
            obs, own_reward, terminated, truncated, info = member.step(action, mask, **requested)
            # results of these environments, beside those of the other members
            reward = torch.where(mask, own_reward, reward)
            own = (terminated, truncated, info["success"], info["invalid"])
            flags = [torch.where(mask, new, old) for new, old in zip(own, flags, strict=True)]
            self._take(obs, mask.nonzero().flatten())
        terminated, truncated, success, invalid = flags
        info = {"success": success, "invalid": invalid}
        return StepResult(self._observation(), reward, terminated, truncated, info)

    def abandon(self) -> None:
        """Give up all running episodes, where a member needs that."""
        for member in self.members:
            abandon = getattr(member, "abandon", None)
            if abandon is not None:
                abandon()

    def render(self) -> Tensor:
        """Return one picture of every environment (E, Y, X, 3) uint8, of its present task."""
        pictures: Tensor | None = None
        for index, member in enumerate(self.members):
            if self._begun[index]:
                own = member.render()
                mask = (self.task_id == index)[:, None, None, None].to(own.device)
                # (E, Y, X, 3)
                pictures = own if pictures is None else torch.where(mask, own, pictures)
        if pictures is None:
            raise RuntimeError(f"{self.spec.id} has nothing to render yet; reset it first")
        return pictures

    def expert(self) -> Expert:
        """Return an expert that acts by that of each task, and not at all in tasks without one.

        Raises:
            ValueError: no task has one.
        """
        return SuiteExpert(self)

    def close(self) -> None:
        for member in self.members:
            member.close()

    def _take(self, obs: Observation, rows: Tensor) -> None:
        """Write a member's observation of some rows (N,) into that of the suite."""
        for key, value in obs.items():
            if key == "task_id":
                continue
            if key not in self._obs:
                self._obs[key] = torch.zeros_like(value)
            self._obs[key][rows] = value[rows]

    def _observation(self) -> Observation:
        # fresh tensors, because the suite's own are written to again
        obs = {key: value.clone() for key, value in self._obs.items()}
        return {**obs, "task_id": self.task_id.clone()}


class SuiteExpert:
    """The experts of a suite's tasks, each in the environments that play its task.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> env = SuiteEnv("mock/[Reach,Again]", [Reach(4), Reach(4)])
        >>> obs = env.reset(torch.tensor([0, 1, 2, 3]))
        >>> SuiteExpert(env).act().shape
        torch.Size([4, 2])

    Args:
        env: The suite.

    Raises:
        ValueError: no task has an expert.
    """

    def __init__(self, env: SuiteEnv) -> None:
        self._env = env
        self._experts: dict[int, Expert] = {}
        for index, member in enumerate(env.members):
            if index not in env.spec.tasks_without_expert:
                self._experts[index] = member.expert()
        if not self._experts:
            raise ValueError(f"{env.spec.id} has no expert for any of its tasks")

    def act(self) -> Tensor:
        """Return the actions (E, d) [robot units], zeros in tasks without an expert."""
        spec = self._env.spec
        action = torch.zeros(spec.num_envs, spec.action_dim, device=spec.device)
        for index, expert in self._experts.items():
            mask = self._env.task_id == index  # (E,)
            if mask.any():
                action = torch.where(mask[:, None], expert.act().to(action), action)
        return action


def make_suite(
    factory: Callable[[str, EnvConfig], VectorEnv], members: tuple[str, ...], config: EnvConfig
) -> SuiteEnv:
    """Return a suite that consists of an environment of each member.

    Args:
        factory: Makes an environment of the prefix.
        members: Names of the tasks, without the prefix.
        config: Config of the suite, also of each member.

    Raises:
        ValueError: a member is unknown, or the layouts differ.
    """
    made: list[VectorEnv] = []
    try:
        for name in members:
            member = replace(config, id=f"{config.prefix}/{name}", instruction=None)
            made.append(factory(name, member))
        return SuiteEnv(config.id, made)
    except BaseException:
        for env in made:
            env.close()
        raise


def _suite_spec(suite_id: str, specs: Sequence[EnvSpec]) -> EnvSpec:
    """Return the spec of a suite.

    Raises:
        ValueError: the layouts differ, or a member has several tasks or fixed starts.
    """
    first = specs[0]
    for spec in specs:
        check_same_specs(suite_id, first, spec)
        if len(spec.tasks) != 1 or spec.num_starts is not None:
            raise ValueError(
                f"{suite_id}: {spec.id} has {len(spec.tasks)} tasks and num_starts="
                f"{spec.num_starts}; a member of a suite has one task and any number of starts"
            )
    return replace(
        first,
        id=suite_id,
        max_episode_steps=max(spec.max_episode_steps for spec in specs),
        tasks=tuple(spec.tasks[0] for spec in specs),
        task_names=tuple(spec.id for spec in specs),
        seeded_tasks=True,
        deterministic_reset=all(spec.deterministic_reset for spec in specs),
        success_signal=all(spec.success_signal for spec in specs),
    )


def _has_expert(env: VectorEnv) -> bool:
    try:
        env.expert()
    except ValueError:
        return False
    return True
