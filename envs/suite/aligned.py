"""One state for tasks whose states have different parts.

Parts of one name share their entries, and the entries of a part that a task lacks are 0. So an
entry means the same in every task.

Letters: E envs, N rows, s robot state dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pitune.envs.vector_env import (
    Expert,
    Observation,
    StepResult,
    VectorEnv,
    draws_on_request,
)

Layout = Mapping[str, int]
"""Name of each part of a state -> its number of entries, in their order."""


def common_layout(suite_id: str, layouts: Mapping[str, Layout]) -> dict[str, int]:
    """Return the layout that holds the parts of all tasks.

    Parts of the task with the most parts come first, so that its own state is not changed.

    Example:
        >>> common_layout("x/[a,b]", {"a": {"arm": 7, "cube": 3}, "b": {"arm": 7, "ball": 3}})
        {'arm': 7, 'cube': 3, 'ball': 3}

    Args:
        suite_id: Name for messages.
        layouts: Name of each task -> the layout of its state.

    Raises:
        ValueError: a part has different sizes, e.g. the joints of two robots.
    """
    common: dict[str, int] = {}
    owner: dict[str, str] = {}
    # stable, so that equal numbers of parts keep the order of the tasks
    for task, layout in sorted(layouts.items(), key=lambda item: -len(item[1])):
        for part, size in layout.items():
            if common.setdefault(part, size) != size:
                first = owner[part]
                raise ValueError(
                    f"{suite_id}: its tasks must share one state layout, but {part!r} has "
                    f"{common[part]} entries in {first} and {size} in {task} ({first}: "
                    f"{dict(layouts[first])}, {task}: {dict(layout)}); leave one of them out"
                )
            owner.setdefault(part, task)
    return common


def columns_of(layout: Layout, common: Layout) -> list[int]:
    """Return the place of each entry of a task's state (s) within the common state.

    Example:
        >>> columns_of({"arm": 2, "ball": 1}, {"arm": 2, "cube": 3, "ball": 1})
        [0, 1, 5]
    """
    places: dict[str, int] = {}
    num_before = 0
    for part, size in common.items():
        places[part] = num_before
        num_before += size
    return [places[part] + entry for part, size in layout.items() for entry in range(size)]


class AlignedEnv:
    """A simulator whose state has places for the parts of other tasks too.

    Example:
        >>> from pitune.envs.mock.reach import Reach
        >>> env = AlignedEnv(Reach(2), {"point": 2, "goal": 2}, {"point": 2, "box": 3, "goal": 2})
        >>> state = env.reset(torch.tensor([0, 1]))["state"]
        >>> state.shape, state[:, 2:5].abs().max().item()
        (torch.Size([2, 7]), 0.0)

    Args:
        env: The simulator.
        layout: Of its state.
        common: Layout of the suite's states.
    """

    def __init__(self, env: VectorEnv, layout: Layout, common: Layout) -> None:
        self._env = env
        self.spec = replace(env.spec, state_dim=sum(common.values()))
        self._columns = torch.tensor(columns_of(layout, common), device=env.spec.device)
        self._draws_on_request = draws_on_request(env)

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        return self._aligned(self._env.reset(seed, env_idx))

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        requested: dict[str, Any] = {}
        if pictures is not None and self._draws_on_request:
            requested = {"pictures": pictures}
        result = self._env.step(action, active, **requested)
        return result._replace(obs=self._aligned(result.obs))

    def render(self) -> Tensor:
        return self._env.render()

    def expert(self) -> Expert:
        return self._env.expert()

    def close(self) -> None:
        self._env.close()

    def _aligned(self, obs: Observation) -> Observation:
        state = obs["state"]
        aligned = state.new_zeros(len(state), self.spec.state_dim)
        aligned[:, self._columns] = state
        return {**obs, "state": aligned}
