"""Several Gymnasium environments of one kind, with numpy arrays in and out.

A `WorkerEnv` has one `SubEnvs` per process. A sub-environment that raises is discarded and made
again at its next reset, and its traceback is returned as text. One bad episode must not end a run
of days, and the exception object of a user's simulator may not survive pickling.

Letters: N rows, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import contextlib
import os
import platform
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from pitune.envs.success import read_success, reports_success
from pitune.envs.workers.spaces import (
    Arrays,
    SubEnvSpec,
    empty_obs,
    read_spaces,
    write_row,
)

Factory = Callable[[], gymnasium.Env]
"""Makes one sub-environment. It must be picklable, because it is called inside the worker."""


@dataclass
class Rows:
    """The results of N rows. In a row of `failed` all other fields are meaningless.

    Example:
        >>> envs = SubEnvs(lambda: gymnasium.make("Pendulum-v1"), "gym/Pendulum-v1", num_envs=2)
        >>> rows = Rows.empty(envs.spec, num_rows=2)
        >>> rows.obs["state"].shape, rows.reward.tolist(), rows.failed
        ((2, 3), [0.0, 0.0], {})
    """

    obs: Arrays
    reward: np.ndarray
    """(N,) float32."""
    terminated: np.ndarray
    """(N,) bool."""
    truncated: np.ndarray
    """(N,) bool."""
    success: np.ndarray
    """(N,) bool."""
    failed: dict[int, str]
    """Position within the N rows -> traceback of the sub-environment that broke down."""
    reports_success: bool = False
    """Whether any `info` reported success, be it True or False."""

    @classmethod
    def empty(cls, spec: SubEnvSpec, num_rows: int) -> Rows:
        """Return N rows of zeros."""
        terminated, truncated, success = np.zeros((3, num_rows), bool)
        obs = empty_obs(spec.state_dim, spec.cameras, num_rows)
        reward = np.zeros(num_rows, np.float32)
        return cls(obs, reward, terminated, truncated, success, failed={})


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
    """

    def __init__(self, factory: Factory, env_id: str, num_envs: int) -> None:
        self.factory, self.env_id = factory, env_id
        self.envs: list[gymnasium.Env | None] = [factory() for _ in range(num_envs)]
        self.started = [False] * num_envs
        self.spec = self._read_spec()

    def _read_spec(self) -> SubEnvSpec:
        """Describe the first environment, after a step: earlier `info` may be incomplete."""
        env = self._get_or_make(0)
        space_fields = read_spaces(self.env_id, env.observation_space, env.action_space)

        # steps with the middle of the bounds, until one reports success or the episode ends
        low, high = np.array(space_fields["action_low"]), np.array(space_fields["action_high"])
        middle = self._to_space(env, (low + high) / 2)
        success_signal = reports_success(env, middle, self.env_id)

        # rate of the control steps
        step_seconds = getattr(env.unwrapped, "dt", None)
        frame_rate = env.metadata.get("render_fps")
        return SubEnvSpec(
            **space_fields,
            max_episode_steps=env.spec.max_episode_steps if env.spec else None,
            control_hz=1 / step_seconds if isinstance(step_seconds, float) else frame_rate,
            success_signal=success_signal,
            expert=env.has_wrapper_attr("expert_action"),
        )

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> Rows:
        """Start an episode in each of `rows`, with one seed each."""
        results = Rows.empty(self.spec, len(rows))
        for position, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            try:
                obs, _ = self._get_or_make(row).reset(seed=int(seed))
                self._write(results.obs, position, obs)
                self.started[row] = True
            except Exception:
                # the next use of this row makes a new one
                self._discard(row)
                results.failed[position] = traceback.format_exc()
        return results

    def step(self, rows: Sequence[int], action: np.ndarray) -> Rows:
        """Step each of `rows` once with its row of `action` (N, d) [robot units]."""
        results = Rows.empty(self.spec, len(rows))
        for position, row in enumerate(rows):
            info: Any = None
            try:
                env = self._get_or_make(row)
                obs, reward, terminated, truncated, info = env.step(
                    self._to_space(env, action[position])
                )
                self._write(results.obs, position, obs)
                if not np.isfinite(float(reward)):
                    raise FloatingPointError(f"{self.env_id} returned reward={reward}")
                results.reward[position] = reward
                results.terminated[position], results.truncated[position] = terminated, truncated
            except Exception:
                self._discard(row)
                results.failed[position] = traceback.format_exc()
            # outside of the try: a value that is no flag is an error, and no breakdown
            success = read_success(info, self.env_id)
            results.reports_success |= success is not None
            results.success[position] = bool(success)
        return results

    def render(self) -> list[np.ndarray | None]:
        """Return a picture (Y, X, 3) uint8 of every environment, None before its first episode."""
        return [
            self._render_one(env) if env is not None and started else None
            for env, started in zip(self.envs, self.started, strict=True)
        ]

    def _render_one(self, env: gymnasium.Env) -> np.ndarray:
        """Return a picture (Y, X, 3) uint8 of one environment."""
        try:
            with use_offscreen_renderer():
                picture: Any = env.render()
        except Exception as error:  # each library raises another exception when it is missing
            if str(error).startswith(f"{self.env_id} cannot render"):
                raise  # the adapter has a better message
            raise RuntimeError(
                f"{self.env_id} cannot render: {error}; if it is drawn by OpenGL, install libegl1 "
                "or libosmesa6 and choose with MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            ) from error
        if not isinstance(picture, np.ndarray):
            raise RuntimeError(
                f"{self.env_id} cannot render: render() returned {type(picture).__name__} instead "
                "of a picture; make it with render_mode='rgb_array'"
            )
        return picture

    def expert(self) -> np.ndarray:
        """Return the expert's action (N, d) [robot units], zeros before an episode begins."""
        action = np.zeros((len(self.envs), len(self.spec.action_low)), np.float32)
        for row, env in enumerate(self.envs):
            if env is not None and self.started[row]:
                action[row] = np.ravel(env.get_wrapper_attr("expert_action")())
        return action

    def close(self) -> None:
        """Close every environment."""
        for row in range(len(self.envs)):
            self._discard(row)

    def _to_space(self, env: gymnasium.Env, action: np.ndarray) -> np.ndarray:
        """Return one action (d,) in the shape and the dtype of the environment's action space."""
        return action.reshape(env.action_space.shape or ()).astype(env.action_space.dtype)

    def _get_or_make(self, row: int) -> gymnasium.Env:
        """Return the environment of a row, made again if it was discarded."""
        env = self.envs[row]
        if env is None:
            env = self.envs[row] = self.factory()
        return env

    def _discard(self, row: int) -> None:
        """Close and forget an environment. A broken one may raise when it is closed."""
        env, self.envs[row], self.started[row] = self.envs[row], None, False
        if env is not None:
            with contextlib.suppress(Exception):
                env.close()

    def _write(self, obs: Arrays, position: int, raw: Any) -> None:
        """Copy one raw observation into its row."""
        write_row(obs, position, raw)
        if not np.isfinite(obs["state"][position]).all():
            raise FloatingPointError(f"{self.env_id} returned a state that is not finite")


@contextlib.contextmanager
def use_offscreen_renderer() -> Iterator[None]:
    """Make Gymnasium's MuJoCo renderer, if it starts inside, choose a backend without a screen.

    By default it chooses GLFW, which fails when it draws. The choice is undone afterwards, because
    other MuJoCo code in this process may have made its own.
    """
    before = os.environ.get("MUJOCO_GL")
    if before is None and platform.system() == "Linux":
        os.environ["MUJOCO_GL"] = os.environ.get("PYOPENGL_PLATFORM", "egl").lower()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)
