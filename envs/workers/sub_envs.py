"""Several Gymnasium environments of one kind, with numpy arrays in and out.

A `WorkerEnv` has one `SubEnvs` per process. A sub-environment that raises is discarded and made
again at its next reset, and its traceback is returned as text. One bad episode must not end a run
of days, and the exception object of a user's simulator may not survive pickling. Results that do
not have the promised form raise instead, because every episode would have them.

Letters: N rows, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from pitune.envs.success import read_success
from pitune.envs.workers.observation import Arrays, ObsReader
from pitune.envs.workers.pictures import picture_of, with_pictures
from pitune.envs.workers.probe import BREAKDOWNS, describe
from pitune.envs.workers.rows import Rows
from pitune.envs.workers.spaces import SubEnvSpec, read_actions, to_number
from pitune.envs.workers.surroundings import BreakdownError, Surroundings, user_code
from pitune.envs.workers.tasks import find_instruction

Factory = Callable[[], gymnasium.Env]
"""Makes one sub-environment. It must be picklable, because it is called inside the worker."""

MAX_REWARD = float(np.finfo(np.float32).max)
"""Greatest reward that float32 holds."""


class SubEnvs:
    """Several environments of one kind, stepped one after the other.

    Example:
        >>> envs = SubEnvs(lambda: gymnasium.make("Pendulum-v1"), "gym/Pendulum-v1", num_envs=2)
        >>> envs.reset(rows=[0, 1], seeds=[7, 8]).obs["state"].shape
        (2, 3)

    Args:
        factory: Makes one environment.
        env_id: Name for messages.
        num_envs: Number of environments to make.
        first: Number of the first one among those of all workers. The global generators are seeded
            by this number while an environment is made.
        shared: Whether they live in the trainer's process, whose global state must not change.

    Raises:
        ValueError: the spaces are not usable.
        BreakdownError: the environment exits while it is made. Other errors pass through.
    """

    def __init__(
        self,
        factory: Factory,
        env_id: str,
        num_envs: int,
        first: int = 0,
        *,
        shared: bool = True,
    ) -> None:
        self.factory, self.env_id, self.first = factory, env_id, first
        self.envs: list[gymnasium.Env | None] = [None] * num_envs
        self.started = [False] * num_envs
        self._surroundings = Surroundings(num_envs, shared=shared)
        with self._surroundings.borrowed():
            try:
                for row in range(num_envs):
                    self.env(row)
                env = self.env(0)
                self.reader = ObsReader.of(env_id, env.observation_space)
                self.num_actions = len(read_actions(env_id, env.action_space)["action_low"])
            except BaseException:
                self._discard_all()
                raise

    def describe(self, *, verify: bool) -> SubEnvSpec:
        """Return the spec of the first environment, after playing with it. See `probe.describe`."""
        with self._surroundings.borrowed():
            return describe(self, self.env_id, verify=verify)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Rows:
        """Start an episode in each of `rows`, with one seed each.

        Raises:
            ValueError: an observation does not have the form of its space.
        """
        results = self._empty(len(rows))
        with self._surroundings.borrowed():
            for position, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
                try:
                    raw, info = self.begin(row, int(seed))
                    self._write(results.obs, position, raw)
                    words = self.words(row, raw, info)
                except BREAKDOWNS as error:
                    # the next use of this row makes a new one
                    self.discard(row)
                    results.failed[position] = _reason(error)
                    continue
                self.started[row] = results.drawn[position] = True
                if words:
                    results.words[position] = words
        return results

    def step(
        self, rows: Sequence[int], action: np.ndarray, pictures: np.ndarray | None = None
    ) -> Rows:
        """Step each of `rows` once.

        Args:
            rows: (N,).
            action: (N, d) [robot units].
            pictures: Rows whose pictures are read even if their episode goes on (N,) bool. By
                default all. If no picture is read at all, the result has none.

        Raises:
            ValueError: a result does not have the promised form.
        """
        results = self._empty(len(rows))
        with self._surroundings.borrowed():
            for position, row in enumerate(rows):
                draw = pictures is None or bool(pictures[position])
                try:
                    raw, reward, terminated, truncated, info = self.advance(
                        row, action[position], draw=draw
                    )
                    draw |= terminated or truncated
                    self._write(results.obs, position, raw, pictures=draw)
                    self._check_reward(reward)
                except BREAKDOWNS as error:
                    self.discard(row)
                    results.failed[position] = _reason(error)
                    continue
                results.drawn[position], results.reward[position] = draw, reward
                results.terminated[position], results.truncated[position] = terminated, truncated
                success = read_success(info, self.env_id)
                results.success[position] = bool(success)
                results.reports_success |= success is not None
        return results if results.drawn.any() else results.without_pictures()

    def begin(self, row: int, seed: int) -> tuple[Any, Mapping[str, Any]]:
        """Reset one environment and return its raw observation and its info."""
        with user_code():
            env = self.env(row)
            self._surroundings.enter(row, seed)
            raw, info = env.reset(seed=seed)
            raw = with_pictures(env, raw) if self.reader.pictures else raw
        return raw, _mapping(info)

    def advance(
        self, row: int, action: np.ndarray, *, draw: bool = True
    ) -> tuple[Any, float, bool, bool, Mapping[str, Any]]:
        """Step one environment and return its raw observation and the other results as numbers.

        Args:
            row: The environment.
            action: (d,) [robot units].
            draw: Whether its pictures are read even if its episode goes on.
        """
        with user_code():
            env = self.env(row)
            self._surroundings.enter(row)
            returned = env.step(self._to_space(env, action))
        if not isinstance(returned, tuple) or len(returned) != 5:
            raise ValueError(
                f"{self.env_id}: step() returned {type(returned).__name__} of "
                f"{len(returned) if isinstance(returned, tuple) else 1}; return observation, "
                "reward, terminated, truncated, info"
            )
        raw, *values, info = returned
        reward, terminated, truncated = (
            to_number(value, name, self.env_id)
            for value, name in zip(values, ("reward", "terminated", "truncated"), strict=True)
        )
        if self.reader.pictures and (draw or terminated or truncated):
            with user_code():
                raw = with_pictures(env, raw)
        return raw, reward, bool(terminated), bool(truncated), _mapping(info)

    def words(self, row: int, raw: Any, info: Mapping[str, Any]) -> str | None:
        """Return the instruction of the episode that `begin` has started, or None."""
        with user_code():  # an attribute may be a property
            return find_instruction(self.env(row), self.reader, raw, info)

    def render(self) -> list[np.ndarray | None]:
        """Return a picture (Y, X, 3) uint8 of every environment, None before its first episode."""
        pictures: list[np.ndarray | None] = [None] * len(self.envs)
        with self._surroundings.borrowed():
            for row, env in enumerate(self.envs):
                if env is not None and self.started[row]:
                    self._surroundings.enter(row)
                    pictures[row] = picture_of(env, self.env_id)
        return pictures

    def expert(self) -> np.ndarray:
        """Return the expert's action (N, d) [robot units], zeros before an episode begins."""
        action = np.zeros((len(self.envs), self.num_actions), np.float32)
        with self._surroundings.borrowed():
            for row, env in enumerate(self.envs):
                if env is not None and self.started[row]:
                    self._surroundings.enter(row)
                    with user_code():
                        action[row] = np.ravel(env.get_wrapper_attr("expert_action")())
        return action

    def close(self) -> None:
        """Close every environment."""
        with self._surroundings.borrowed():
            self._discard_all()

    def env(self, row: int) -> gymnasium.Env:
        """Return the environment of a row, made again if it was discarded."""
        env = self.envs[row]
        if env is None:
            self._surroundings.enter(row, construction_seed(self.first + row))
            try:
                env = self.envs[row] = self.factory()
            except SystemExit as error:
                raise BreakdownError(traceback.format_exc()) from error
        return env

    def discard(self, row: int) -> None:
        """Close and forget an environment. A broken one may raise when it is closed."""
        env, self.envs[row], self.started[row] = self.envs[row], None, False
        if env is not None:
            self._surroundings.enter(row)
            with contextlib.suppress(BreakdownError), user_code():
                env.close()

    def _empty(self, num_rows: int) -> Rows:
        return Rows.empty(self.reader.state_dim, self.reader.cameras, num_rows)

    def _to_space(self, env: gymnasium.Env, action: np.ndarray) -> np.ndarray:
        """Return one action (d,) in the shape and the dtype of the environment's action space."""
        return action.reshape(env.action_space.shape or ()).astype(env.action_space.dtype)

    def _discard_all(self) -> None:
        for row in range(len(self.envs)):
            self.discard(row)

    def _write(self, obs: Arrays, position: int, raw: Any, *, pictures: bool = True) -> None:
        """Copy one raw observation into its row."""
        for key, value in self.reader.read(raw, pictures=pictures).items():
            obs[key][position] = value
        state = obs["state"][position]
        if not np.isfinite(state).all():
            entry = int(np.flatnonzero(~np.isfinite(state))[0])
            raise FloatingPointError(
                f"{self.env_id} returned a state that is not finite in float32, from entry {entry}"
            )

    def _check_reward(self, reward: float) -> None:
        if not abs(reward) <= MAX_REWARD:  # also for nan
            raise FloatingPointError(
                f"{self.env_id} returned reward={reward}, which is not finite in float32"
            )


def construction_seed(number: int) -> int:
    """Return the seed of the global generators while environment `number` is made."""
    return int(np.random.SeedSequence([number]).generate_state(1)[0])


def _mapping(info: Any) -> Mapping[str, Any]:
    """Return an `info`, which some environments leave out."""
    return info if isinstance(info, Mapping) else {}


def _reason(error: Exception) -> str:
    """Return the reason of a breakdown: the traceback of user code, or our own finding."""
    return str(error) if isinstance(error, BreakdownError) else f"{type(error).__name__}: {error}"
