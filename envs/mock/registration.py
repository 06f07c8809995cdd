"""`mock/<name>`: environments without a simulator, for tests and for a first look."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated

from pitune.envs.config import EnvConfig, EnvOptions, require_default
from pitune.envs.registry import register
from pitune.envs.vector_env import VectorEnv
from pitune.ranges import Range

TASKS = ("Reach", "Recall", "Script", "TwoGoals")
"""All names after `mock/`."""


@dataclass(frozen=True, kw_only=True)
class MockOptions(EnvOptions):
    """Options of `mock/<name>`.

    Example:
        >>> from pitune import envs
        >>> config = envs.EnvConfig(id="mock/Reach", num_envs=2, options=MockOptions(num_tasks=2))
        >>> envs.make(config).spec.tasks
        ('reach the green goal', 'reach the red goal')
    """

    num_tasks: Annotated[int, Range(low=1, high=2)] = 1
    """Goals of `mock/Reach`, 1 or 2. With 2 the instruction names one of them."""


def make_mock(name: str, config: EnvConfig) -> VectorEnv:
    """Return the mock environment of a name.

    Raises:
        ValueError: the name is unknown, or the environment cannot honor a setting.
    """
    from pitune.envs.mock.reach import Reach, Script
    from pitune.envs.mock.recall import Recall
    from pitune.envs.mock.two_goals import TwoGoals

    num_envs, options = config.num_envs, config.typed_options(MockOptions)
    if name not in TASKS:
        nearest = get_close_matches(name, TASKS, n=1, cutoff=0.3)
        hint = f"; did you mean 'mock/{nearest[0]}'?" if nearest else ";"
        valid = ", ".join(f"mock/{task}" for task in TASKS)
        raise ValueError(f"unknown task id={config.id!r}{hint} valid: {valid}")
    if name == "Reach":
        return Reach(
            num_envs,
            num_tasks=options.num_tasks,
            cameras=config.cameras,
            image_size=config.image_size,
            reward=config.reward,
            max_episode_steps=config.time_limit(20),
        )

    # the other tasks have neither cameras, nor rewards, nor tasks to choose from
    for settings, setting in ((config, "cameras"), (config, "reward"), (options, "num_tasks")):
        require_default(settings, setting, config.id, "use mock/Reach")
    if name == "Script":
        lengths = (config.time_limit(5),) * num_envs
        return Script(num_envs, lengths=lengths, ends=("time",) * num_envs, pays_time=False)
    if name == "Recall":
        return Recall(num_envs, max_episode_steps=config.time_limit(16))
    return TwoGoals(num_envs, max_episode_steps=config.time_limit(4))


register("mock", make_mock, MockOptions, tasks=lambda: TASKS)
