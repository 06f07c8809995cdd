"""One sub-environment of a suite in a worker process: it plays the task that its seed chooses.

Letters: s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Dict, Discrete

from pitune.envs.suite.layout import check_same_spaces
from pitune.envs.workers.pictures import with_pictures
from pitune.envs.workers.spaces import control_rate
from pitune.envs.workers.sub_envs import construction_seed
from pitune.envs.workers.surroundings import Surroundings

MemberFactory = Callable[[], gymnasium.Env]
"""Makes the simulator of one task. It must be picklable, because workers call it."""


@dataclass(frozen=True, kw_only=True)
class MemberSpaces:
    """The spaces that all members of a suite have.

    Example:
        >>> from functools import partial
        >>> MemberSpaces.of(partial(gymnasium.make, "Pendulum-v1")).action.shape
        (1,)
    """

    observation: gymnasium.Space[Any]
    action: gymnasium.Space[Any]
    control_hz: float | None
    """Steps per simulated second, or None if the simulator does not state it [Hz]."""

    @classmethod
    def of(cls, factory: MemberFactory) -> MemberSpaces:
        """Return the spaces of one simulator, which is made and closed in this process."""
        surroundings = Surroundings(1, shared=True)
        with surroundings.borrowed():
            surroundings.enter(0, construction_seed(0))
            env = factory()
            spaces = cls(
                observation=env.observation_space,
                action=env.action_space,
                control_hz=control_rate(env),
            )
            env.close()
        return spaces

    @property
    def parts(self) -> dict[str, gymnasium.Space[Any]]:
        """The observation's parts by name: `state`, `image/<camera>`."""
        space = self.observation
        return dict(space.spaces) if isinstance(space, Dict) else {"state": space}


class SuiteSubEnv(gymnasium.Env[Any, np.ndarray]):
    """One of several Gymnasium environments at a time, made when a seed chooses it.

    The seed of an episode is `task_id + num_tasks * start`. The member's own seed is `start`, so an
    episode is the same as in the single environment with this seed.

    Example:
        >>> from functools import partial
        >>> factories = {"swing": partial(gymnasium.make, "Pendulum-v1")}
        >>> spaces = MemberSpaces.of(factories["swing"])
        >>> env = SuiteSubEnv("gym/[swing]", factories, spaces, held=1)
        >>> obs, info = env.reset(seed=5)
        >>> obs["state"].shape, int(obs["task_id"])
        ((3,), 0)

    Args:
        suite_id: Name for messages.
        factories: Name of each task -> its factory, in the order of the suite's tasks.
        spaces: Spaces of every member.
        held: Greatest number of simulators at a time. Beyond it, the one that was used longest ago
            is closed.

    Raises:
        ValueError: when an episode begins, a member's spaces differ from the given ones.
    """

    def __init__(
        self,
        suite_id: str,
        factories: Mapping[str, MemberFactory],
        spaces: MemberSpaces,
        held: int,
    ) -> None:
        self._suite_id, self._spaces, self._held = suite_id, spaces, held
        self._names, self._factories = tuple(factories), tuple(factories.values())
        self._members: dict[int, gymnasium.Env] = {}
        self._task_id = 0
        # interface of a Gymnasium environment
        self.action_space = spaces.action
        self.observation_space = Dict({**spaces.parts, "task_id": Discrete(len(factories))})
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": spaces.control_hz}
        self.render_mode = "rgb_array"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode of the task `seed % num_tasks`."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        start, self._task_id = divmod(number, len(self._factories))
        raw, info = self._member(self._task_id).reset(seed=start, options=options)
        return self._with_task(raw), {**info}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Take one step with an action (d,)."""
        raw, reward, terminated, truncated, info = self._current.step(action)
        return self._with_task(raw), float(reward), terminated, truncated, {**info}

    def expert_action(self) -> np.ndarray:
        """Return the action (d,) of the present task's expert, zeros where it has none."""
        try:
            act = self._current.get_wrapper_attr("expert_action")
        except AttributeError:
            return np.zeros(self.action_space.shape or (), np.float32)
        return np.asarray(act())

    def draw_pictures(self) -> dict[str, np.ndarray]:
        """Return the pictures `image/<camera>` (Y, X, C) that the present task draws on request."""
        drawn: dict[str, np.ndarray] = with_pictures(self._current, {})
        return drawn

    def render(self) -> Any:
        """Return a picture (Y, X, 3) uint8 of the present task."""
        return self._current.render()

    def close(self) -> None:
        """Close all simulators."""
        members, self._members = self._members, {}
        for member in members.values():
            member.close()

    @property
    def _current(self) -> gymnasium.Env:
        return self._members[self._task_id]

    def _member(self, task_id: int) -> gymnasium.Env:
        """Return the simulator of a task, made again if it was closed."""
        member = self._members.pop(task_id, None)
        if member is None:
            # closed before the new one is made, so that `held` bounds the memory
            while len(self._members) >= self._held:
                self._members.pop(next(iter(self._members))).close()
            member = self._factories[task_id]()
            self._check(task_id, member)
        self._members[task_id] = member
        return member

    def _check(self, task_id: int, member: gymnasium.Env) -> None:
        """Raise if a new member's spaces differ from the suite's."""
        own = MemberSpaces(
            observation=member.observation_space, action=member.action_space, control_hz=None
        )
        check_same_spaces(
            self._suite_id,
            (self._names[0], {**self._spaces.parts, "action": self._spaces.action}),
            (self._names[task_id], {**own.parts, "action": own.action}),
        )

    def _with_task(self, raw: Any) -> dict[str, Any]:
        obs = raw if isinstance(self._spaces.observation, Dict) else {"state": raw}
        return {**obs, "task_id": np.int64(self._task_id)}
