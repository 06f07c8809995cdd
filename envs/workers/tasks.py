"""Tasks of Gymnasium environments: their instructions, and the meaning of the sparse reward.

The instruction of an episode is looked for in the `info` of the reset, in a Text part of the
observation, in an attribute of the environment, and in the keyword arguments that it was registered
with, in this order.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from pitune.envs.config import Reward
from pitune.envs.workers.observation import INSTRUCTION_KEYS, ObsReader


class TaskTable:
    """Instructions by `task_id`, for environments that give one in every episode or none.

    Example:
        >>> table = TaskTable("gym/x", (), ("close it", "open it"), num_tasks=1)
        >>> table.index("open it")
        1

    Args:
        env_id: Name for messages.
        chosen: Instructions that the user or the adapter has chosen. One replaces those of the
            environment, several are the table of them.
        given: Instructions that the environment gave in several episodes.
        num_tasks: Number of values of `task_id` in its observation.

    Raises:
        ValueError: the number of chosen instructions does not fit the values of `task_id`.
    """

    def __init__(
        self, env_id: str, chosen: tuple[str, ...], given: tuple[str, ...], num_tasks: int
    ) -> None:
        self.tasks = chosen or given or ("",) * num_tasks
        self._env_id = env_id
        has_words = bool(given) and len(chosen) != 1
        self.is_observed = len(self.tasks) > 1 and not has_words
        """Whether the observation holds the tasks, so that there is nothing to look up."""
        self._is_fixed = not has_words
        if not given and len(self.tasks) not in (1, num_tasks):
            raise ValueError(
                f"{env_id}: instructions={chosen} are {len(chosen)}, but the environment gives "
                f"no words and {num_tasks} values of task_id; pass one instruction, or one for "
                "each value"
            )

    def index(self, words: str | None) -> int:
        """Return the task of an episode that begins with an instruction.

        Raises:
            ValueError: the instruction is not in the table.
        """
        if self._is_fixed:
            return 0
        if words not in self.tasks:
            raise ValueError(
                f"{self._env_id}: an episode has the instruction {words!r}, which is not among "
                f"{list(self.tasks)[:20]}; pass all instructions of the environment with "
                "--env.options.instructions, or one for all episodes with --env.instruction"
            )
        return self.tasks.index(words)


def time_limit(env_id: str, limit: int | None, own: int | None) -> int:
    """Return the time limit [steps], that of the sub-environment by default.

    Raises:
        ValueError: there is none.
    """
    chosen = own if limit is None else limit
    if chosen is None or chosen < 1:
        raise ValueError(
            f"{env_id}: max_episode_steps={limit} must be at least 1, and may be None only for "
            "an environment with a time limit of its own; pass max_episode_steps"
        )
    return chosen


def check_reward(env_id: str, reward: Reward, success_signal: bool) -> None:
    """Reject a sparse reward where there is no success.

    Raises:
        ValueError: the reward is unknown, or sparse without a success signal.
    """
    if reward not in ("sparse", "dense"):
        raise ValueError(f"reward={reward!r} of {env_id} must be 'sparse' or 'dense'")
    if reward == "sparse" and not success_signal:
        raise ValueError(
            f"reward='sparse' of {env_id} is 1 on success and else 0, but its info has no success; "
            "pass --env.reward dense for the reward of the environment, or let step() return "
            "info['success']"
        )


def find_instruction(
    env: gymnasium.Env, reader: ObsReader, raw: Any, info: Mapping[str, Any]
) -> str | None:
    """Return the instruction of the episode that a reset has begun, or None.

    Args:
        env: The environment after its reset.
        reader: Reader of its observations.
        raw: The first observation.
        info: The `info` of the reset.
    """
    kwargs = env.spec.kwargs if env.spec is not None else {}
    attributes = {key: getattr(env.unwrapped, key, None) for key in INSTRUCTION_KEYS}
    found = (
        _first(info),
        as_words(reader.words(raw)),
        _first(attributes),
        _first(kwargs),
    )
    return next((words for words in found if words), None)


def as_words(value: Any) -> str | None:
    """Return a text as str, None for anything else and for an empty text.

    Example:
        >>> as_words(np.array(["open the drawer"])), as_words(3)
        ('open the drawer', None)
    """
    if isinstance(value, np.ndarray | list | tuple) and np.size(value) == 1:
        value = np.reshape(np.asarray(value), ()).item()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value.strip() or None if isinstance(value, str) else None


def _first(values: Any) -> str | None:
    """Return the first instruction in a mapping under any of its usual names."""
    if not isinstance(values, Mapping):
        return None
    found = (as_words(values.get(key)) for key in INSTRUCTION_KEYS)
    return next((words for words in found if words), None)
