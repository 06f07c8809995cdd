"""Several copies of one Gymnasium environment behind numpy arrays.

`WorkerEnv` (`envs/workers.py`) talks to one `Copies` per process. A copy that raises is thrown away
and made anew at its next reset, and its traceback travels back as text: one bad episode must not
end a run of days, and an exception object of a user's simulator may not survive pickling.

Letters: E envs, n rows asked about, S state dim, A action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Factory = Callable[[], gymnasium.Env]
"""Makes one copy. It must be picklable, for it is called inside the worker."""

Arrays = dict[str, np.ndarray]
"""An observation of n rows: `state` (n, S), `image/<camera>` (n, C, Y, X), `task_id` (n,)."""


@dataclass(frozen=True, kw_only=True)
class CopySpec:
    """What one copy says about itself."""

    state_dim: int
    """S."""
    cameras: Mapping[str, tuple[int, int, int]]
    """Camera name -> (C, Y, X)."""
    action_low: tuple[float, ...]
    """(A) [robot units]."""
    action_high: tuple[float, ...]
    """(A) [robot units]."""
    max_episode_steps: int | None
    """Time limit that the copy applies itself; None if it has none."""
    control_hz: float | None
    """Steps per simulated second [Hz]; None if the copy does not say."""
    success_signal: bool
    """Whether `info` holds `success` or `is_success`."""
    expert: bool
    """Whether the copy has an `expert_action` method."""

    def empty_obs(self, num_rows: int) -> Arrays:
        """Return an observation of zeros for `num_rows` rows."""
        images = {f"image/{name}": shape for name, shape in self.cameras.items()}
        return {
            "state": np.zeros((num_rows, self.state_dim), np.float32),
            **{key: np.zeros((num_rows, *shape), np.uint8) for key, shape in images.items()},
            "task_id": np.zeros(num_rows, np.int64),
        }


@dataclass
class Rows:
    """What n rows of copies answered; the rows in `failed` hold nothing else of use."""

    obs: Arrays
    reward: np.ndarray
    """(n,) float32."""
    terminated: np.ndarray
    """(n,) bool."""
    truncated: np.ndarray
    """(n,) bool."""
    success: np.ndarray
    """(n,) bool."""
    failed: dict[int, str]
    """Position within the n rows -> traceback of the copy that broke down."""

    @classmethod
    def empty(cls, spec: CopySpec, num_rows: int) -> Rows:
        """Return n rows of zeros."""
        flags = [np.zeros(num_rows, bool) for _ in range(3)]
        return cls(spec.empty_obs(num_rows), np.zeros(num_rows, np.float32), *flags, failed={})


def read_spaces(env_id: str, observation: spaces.Space, action: spaces.Space) -> dict[str, Any]:
    """Return the `CopySpec` fields that follow from the spaces of one environment.

    Raises:
        ValueError: the observation or the action space is not one that a policy here can use.
    """
    parts = observation.spaces if isinstance(observation, spaces.Dict) else {"state": observation}
    cameras: dict[str, tuple[int, int, int]] = {}
    for key, part in parts.items():
        if key.startswith("image/") and isinstance(part, spaces.Box) and len(part.shape) == 3:
            height, width, channels = part.shape
            cameras[key.removeprefix("image/")] = (channels, height, width)
            known = part.dtype == np.uint8
        else:
            known = key == "task_id" or (key == "state" and isinstance(part, spaces.Box))
        if not known:
            raise ValueError(
                f"{env_id}: observation {key!r} is {part}, but a Box, or a Dict of `state` (Box) "
                "and `image/<camera>` (uint8 Box Y,X,C) is needed; wrap the environment with "
                "gymnasium.wrappers.FlattenObservation or TransformObservation"
            )
    if not isinstance(action, spaces.Box):
        raise ValueError(
            f"{env_id}: action_space={action} is not continuous; only a bounded Box is supported, "
            "choose a continuous variant of the environment"
        )
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise ValueError(
            f"{env_id}: action_space={action} has infinite bounds; finite ones are needed, "
            "wrap the environment with gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)"
        )
    return {
        "state_dim": int(np.prod(parts["state"].shape or (1,))) if "state" in parts else 0,
        "cameras": cameras,
        "action_low": tuple(float(bound) for bound in action.low.ravel()),
        "action_high": tuple(float(bound) for bound in action.high.ravel()),
    }


def success_of(info: Mapping[str, Any]) -> Any:
    """Return what `info` says about success under either of its two usual names, or None."""
    return info.get("success", info.get("is_success"))


class Copies:
    """Several copies of one environment, stepped one after the other.

    Args:
        factory: Makes one copy.
        env_id: Name for messages.
        num_copies: How many to make.
    """

    def __init__(self, factory: Factory, env_id: str, num_copies: int) -> None:
        self.factory, self.env_id = factory, env_id
        self.envs: list[gymnasium.Env | None] = [factory() for _ in range(num_copies)]
        self.started = [False] * num_copies
        self.spec = self._describe()

    def _describe(self) -> CopySpec:
        """Look at the first copy and play one step with it: only then does `info` show itself."""
        env = self._alive(0)
        known = read_spaces(self.env_id, env.observation_space, env.action_space)
        env.reset(seed=0)
        middle = (np.array(known["action_low"]) + np.array(known["action_high"])) / 2
        info = env.step(self._native(env, middle))[-1]
        step_seconds = getattr(env.unwrapped, "dt", None)
        frame_rate = env.metadata.get("render_fps")
        return CopySpec(
            **known,
            max_episode_steps=env.spec.max_episode_steps if env.spec else None,
            control_hz=1 / step_seconds if isinstance(step_seconds, float) else frame_rate,
            success_signal=success_of(info) is not None,
            expert=env.has_wrapper_attr("expert_action"),
        )

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Rows:
        """Start an episode in each of `rows`, with one seed each.

        A copy whose reset raises is made anew and tried once more.
        """
        reply = Rows.empty(self.spec, len(rows))
        for position, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            for last_try in (False, True):
                try:
                    self._write(reply.obs, position, self._alive(row).reset(seed=int(seed))[0])
                    self.started[row] = True
                    break
                except Exception:
                    self._discard(row)
                    if last_try:
                        reply.failed[position] = traceback.format_exc()
        return reply

    def step(self, rows: Sequence[int], action: np.ndarray) -> Rows:
        """Step each of `rows` once with its row of `action` (n, A) [robot units]."""
        reply = Rows.empty(self.spec, len(rows))
        for position, row in enumerate(rows):
            try:
                env = self._alive(row)
                obs, reward, terminated, truncated, info = env.step(
                    self._native(env, action[position])
                )
                self._write(reply.obs, position, obs)
                if not np.isfinite(reward):
                    raise FloatingPointError(f"{self.env_id} returned reward={reward}")
                reply.reward[position] = reward
                reply.terminated[position], reply.truncated[position] = terminated, truncated
                reply.success[position] = bool(success_of(info))
            except Exception:
                self._discard(row)
                reply.failed[position] = traceback.format_exc()
        return reply

    def render(self) -> list[np.ndarray | None]:
        """Return a picture (Y, X, 3) uint8 of every copy, None for those without an episode."""
        pictures: list[np.ndarray | None] = []
        for env, started in zip(self.envs, self.started, strict=True):
            picture = env.render() if env is not None and started else None
            if started and not isinstance(picture, np.ndarray):
                raise RuntimeError(
                    f"{self.env_id} returned no picture; make it with render_mode='rgb_array'"
                )
            pictures.append(picture if isinstance(picture, np.ndarray) else None)
        return pictures

    def expert(self) -> np.ndarray:
        """Return the expert's action (n, A) [robot units]; zeros for copies without an episode."""
        action = np.zeros((len(self.envs), len(self.spec.action_low)), np.float32)
        for row, env in enumerate(self.envs):
            if env is not None and self.started[row]:
                action[row] = np.ravel(env.get_wrapper_attr("expert_action")())
        return action

    def close(self) -> None:
        """Close every copy."""
        for row in range(len(self.envs)):
            self._discard(row)

    def _native(self, env: gymnasium.Env, action: np.ndarray) -> np.ndarray:
        """Return one action (A,) in the shape and the dtype that the copy expects."""
        return action.reshape(env.action_space.shape or ()).astype(env.action_space.dtype)

    def _alive(self, row: int) -> gymnasium.Env:
        """Return the copy of a row, made anew if it was thrown away."""
        env = self.envs[row]
        if env is None:
            env = self.envs[row] = self.factory()
        return env

    def _discard(self, row: int) -> None:
        """Throw a copy away; a broken one may well raise when it is closed."""
        env, self.envs[row], self.started[row] = self.envs[row], None, False
        if env is not None:
            with contextlib.suppress(Exception):
                env.close()

    def _write(self, obs: Arrays, position: int, raw: Any) -> None:
        """Copy one raw observation into its row: many environments reuse their buffer."""
        parts = raw if isinstance(raw, Mapping) else {"state": raw}
        for key in obs.keys() & parts.keys():
            part = np.asarray(parts[key])
            row = part.transpose(2, 0, 1) if key.startswith("image/") else part
            obs[key][position] = row.reshape(obs[key].shape[1:])
        if not np.isfinite(obs["state"][position]).all():
            raise FloatingPointError(f"{self.env_id} returned a state that is not finite")
