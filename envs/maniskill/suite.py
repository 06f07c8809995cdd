"""Suites of ManiSkill tasks on the CPU: `maniskill/[PickCube-v1,PushCube-v1]`.

The states of ManiSkill's tasks differ. Their parts have names (`agent/qpos`, `extra/goal_pos`),
which place them in one common state. The places of a part that a task lacks are 0.

Letters: s robot state dim.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from pitune.envs.config import EnvConfig
from pitune.envs.maniskill.adapter import (
    check_settings,
    choose_device,
    make_maniskill_batch,
    make_sub_env,
)
from pitune.envs.maniskill.batch import simulator_version
from pitune.envs.maniskill.experts import check_expert
from pitune.envs.maniskill.registration import ManiSkillOptions
from pitune.envs.maniskill.simulation import build_simulation, time_limit
from pitune.envs.maniskill.tasks import UNSEEDED, instruction
from pitune.envs.suite.aligned import Layout, columns_of, common_layout
from pitune.envs.suite.sub_env import MemberFactory, MemberSpaces, SuiteSubEnv
from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.pool import Timeouts
from pitune.envs.workers.sub_envs import construction_seed
from pitune.envs.workers.surroundings import Surroundings


class AlignedSubEnv(gymnasium.ObservationWrapper[Any, np.ndarray, Any]):
    """One ManiSkill environment whose state has places for the parts of other tasks.

    Example:
        >>> env = AlignedSubEnv(sub_env, layout, common)  # doctest: +SKIP
        >>> env.reset(seed=0)[0].shape == (sum(common.values()),)  # doctest: +SKIP
        True

    Args:
        env: The environment, with a Box or a Dict with `state`.
        layout: Of its state.
        common: Layout of the suite's states.

    Raises:
        ValueError: the layout is not that of the state.
    """

    def __init__(self, env: gymnasium.Env, layout: Layout, common: Layout) -> None:
        super().__init__(env)
        self._columns, self._dim = columns_of(layout, common), sum(common.values())
        space = env.observation_space
        parts = space.spaces if isinstance(space, Dict) else {"state": space}
        if parts["state"].shape != (len(self._columns),):
            raise ValueError(
                f"layout={dict(layout)} has {len(self._columns)} entries, but the state has shape "
                f"{parts['state'].shape}; pass the layout of this task"
            )
        state = Box(-np.inf, np.inf, (self._dim,), np.float32)
        aligned = Dict({**parts, "state": state})
        self.observation_space = aligned if isinstance(space, Dict) else state

    def observation(self, observation: Any) -> Any:
        """Return an observation with the common state (s,)."""
        state = np.zeros(self._dim, np.float32)
        if not isinstance(observation, Mapping):
            state[self._columns] = observation
            return state
        state[self._columns] = observation["state"]
        return {**observation, "state": state}


def make_maniskill_suite(members: tuple[str, ...], config: EnvConfig) -> WorkerEnv:
    """Return a batch in which the seed of an episode chooses one of several ManiSkill tasks.

    Args:
        members: ManiSkill's names.
        config: Its options are `ManiSkillOptions`.

    Raises:
        ImportError: ManiSkill is not installed.
        ValueError: a task or a setting is unknown, the backend is a GPU, or the tasks have
            different robots.
        RuntimeError: cameras are requested, and this machine cannot render.
    """
    options = config.typed_options(ManiSkillOptions)
    for task in members:
        check_settings(task, config)
    if choose_device(options) != "cpu":
        raise ValueError(
            f"backend={options.backend!r} of {config.id} is a GPU, where ManiSkill steps one task "
            "at a time; pass --env.options.backend cpu"
        )
    layouts = {task: read_layout(task, config) for task in members}
    common = common_layout(config.id, layouts)
    factories: dict[str, MemberFactory] = {
        f"maniskill/{task}": functools.partial(make_member, task, config, layouts[task], common)
        for task in members
    }
    return WorkerEnv(
        functools.partial(
            SuiteSubEnv,
            config.id,
            factories,
            MemberSpaces.of(next(iter(factories.values()))),
            options.held_tasks,
        ),
        id=config.id,
        num_envs=config.num_envs,
        num_workers=config.num_workers,
        max_episode_steps=max(time_limit(task, config.max_episode_steps) for task in members),
        tasks=tuple(instruction(task) for task in members),
        simulator=simulator_version(),
        deterministic_reset=not any(task.startswith(UNSEEDED) for task in members),
        probe=False,
        timeouts=Timeouts.of_config(config),
        max_failures=config.max_failures,
        seeded_tasks=True,
        task_names=tuple(factories),
        tasks_without_expert=tuple(
            index for index, task in enumerate(members) if not _has_expert(task, options)
        ),
    )


def make_member(
    task: str, config: EnvConfig, layout: Layout, common: Layout
) -> gymnasium.Env[Any, np.ndarray]:
    """Return one environment of a task with the common state."""
    batch = functools.partial(make_maniskill_batch, task, 1, config, "cpu")
    return AlignedSubEnv(make_sub_env(batch), layout, common)


def read_layout(task: str, config: EnvConfig) -> dict[str, int]:
    """Return the parts of a task's state, from a simulation that is made and closed here."""
    surroundings = Surroundings(1, shared=True)
    with surroundings.borrowed():
        surroundings.enter(0, construction_seed(0))
        simulation = build_simulation(task, 1, config, "cpu")
        simulation.reset(seed=0)
        raw = simulation._get_obs_state_dict(simulation.get_info())
        simulation.close()
    return dict(_sizes(raw))


def _sizes(parts: Mapping[str, Any], prefix: str = "") -> dict[str, int]:
    """Return the number of entries of each part (1, ...) of a nested state, by its path."""
    sizes: dict[str, int] = {}
    for name, part in parts.items():
        if isinstance(part, Mapping):
            sizes |= _sizes(part, f"{prefix}{name}/")
        else:
            sizes[f"{prefix}{name}"] = int(np.prod(part.shape[1:], dtype=int))
    return sizes


def _has_expert(task: str, options: ManiSkillOptions) -> bool:
    try:
        check_expert(task, options.control_mode)
    except ValueError:
        return False
    return True
