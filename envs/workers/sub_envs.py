"""Several copies of one Gymnasium environment behind numpy arrays.

`WorkerEnv` (`envs/workers.py`) has one `Copies` per process. A copy that raises is thrown away and
made anew at its next reset, and its traceback travels back as text: one bad episode must not end a
run of days, and an exception object of a user's simulator may not survive pickling.

Letters: n rows asked about, S state dim, A action dim, C, Y, X image channels and pixels.
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

from pitune.envs.gym.spaces import Arrays, CopySpec, empty_obs, read_spaces, success_of, write_row

Factory = Callable[[], gymnasium.Env]
"""Makes one copy. It must be picklable, for it is called inside the worker."""


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
        terminated, truncated, success = np.zeros((3, num_rows), bool)
        obs = empty_obs(spec.state_dim, spec.cameras, num_rows)
        reward = np.zeros(num_rows, np.float32)
        return cls(obs, reward, terminated, truncated, success, failed={})


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
        """Start an episode in each of `rows`, with one seed each."""
        reply = Rows.empty(self.spec, len(rows))
        for position, (row, seed) in enumerate(zip(rows, seeds, strict=True)):
            try:
                self._write(reply.obs, position, self._alive(row).reset(seed=int(seed))[0])
                self.started[row] = True
            except Exception:
                self._discard(row)
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
        return [
            self._render_one(env) if env is not None and started else None
            for env, started in zip(self.envs, self.started, strict=True)
        ]

    def _render_one(self, env: gymnasium.Env) -> np.ndarray:
        """Return a picture (Y, X, 3) uint8 of one copy."""
        try:
            with off_screen():
                picture = env.render()
        except Exception as error:  # what a missing library raises differs from one to the next
            if str(error).startswith(f"{self.env_id} cannot render"):
                raise  # the adapter knew already what is missing
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
        """Copy one raw observation into its row."""
        write_row(obs, position, raw)
        if not np.isfinite(obs["state"][position]).all():
            raise FloatingPointError(f"{self.env_id} returned a state that is not finite")


@contextlib.contextmanager
def off_screen() -> Iterator[None]:
    """Let Gymnasium's MuJoCo renderer, if it starts meanwhile, take a backend without a screen.

    It would take GLFW, and fail only when it draws. The choice is undone because other MuJoCo
    code in this process may have made its own.
    """
    before = os.environ.get("MUJOCO_GL")
    if before is None and platform.system() == "Linux":
        os.environ["MUJOCO_GL"] = os.environ.get("PYOPENGL_PLATFORM", "egl").lower()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("MUJOCO_GL", None)
