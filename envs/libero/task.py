"""One task of LIBERO as a Gymnasium environment whose seed alone fixes the episode.

An episode begins as in openpi's evaluation: robosuite places the scene, a recorded start of LIBERO
replaces the state of the simulator, and the arm waits until the objects are at rest. The furniture
is no part of the recorded state, and its place is drawn from numpy's global generator. So this
generator is seeded by the number of the start.

robosuite reads the scene again at every reset, which takes seconds, and LIBERO then appends to
lists that it drew from before. Here the scene is read once. What an episode leaves behind is put
back: the places of the furniture, the colors, and the position that the gripper was moving to. The
states and the pictures are the same, bit for bit, as those of a new simulator.

Letters: Y, X image pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict

from pitune.envs.libero.conversion import (
    CAMERAS,
    SETTLING_ACTION,
    SETTLING_STEPS,
    STATE_DIM,
    STATE_KEYS,
    picture_of,
    state_of,
)
from pitune.envs.libero.package import control_env, quiet, return_memory
from pitune.envs.libero.pictures import ScenePictures
from pitune.envs.libero.suites import NUM_STARTS, LiberoFiles

ACTION_DIM = 7
"""Displacement of the gripper (3), its rotation (3), and +1 to close or -1 to open it."""
CONTROL_HZ = 20.0
FIRST_SEED = 7
"""Seed of the furniture's place in start 0, which is openpi's for a task."""
MAX_PLACEMENTS = 1000
"""Attempts to place the objects without collisions."""
CHANGED_BY_EPISODES = ("body_pos", "body_quat", "site_rgba")
"""Arrays of the model that resets and steps of LIBERO write to."""


class LiberoTask(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One task.

    The observation is `state` (8,), and `draw_pictures` returns the cameras of the last one. The
    episode with a seed begins with start `seed % 50`.

    Example:
        >>> from pitune.envs.libero.suites import task_named  # doctest: +SKIP
        >>> env = LiberoTask(task_named("goal", "7"), 300, ("image",), 256)  # doctest: +SKIP
        >>> obs, info = env.reset(seed=0)  # doctest: +SKIP

    Args:
        files: The task.
        max_episode_steps: Length of the longest episode.
        cameras: Names of `CAMERAS`, whose pictures the observation has.
        render_size: Height and width of pictures [pixels].
    """

    def __init__(
        self,
        files: LiberoFiles,
        max_episode_steps: int,
        cameras: tuple[str, ...],
        render_size: int,
    ) -> None:
        self._starts = files.read_starts()
        with quiet():
            self._control = control_env()(
                bddl_file_name=str(files.scene),
                use_camera_obs=False,
                has_offscreen_renderer=False,
                hard_reset=False,
                ignore_done=True,
            )
        self._simulator = self._control.env
        self._model: mujoco.MjModel = self._simulator.sim.model._model
        self._data: mujoco.MjData = self._simulator.sim.data._data
        self._cameras, self._limit, self._num_steps = cameras, max_episode_steps, 0
        self._is_closed = False
        self._pictures = ScenePictures(self._model, render_size)
        self._keep_observables()
        self._fresh = {name: getattr(self._model, name).copy() for name in CHANGED_BY_EPISODES}
        return_memory()

        # interface of a Gymnasium environment
        self.dt = 1 / CONTROL_HZ
        self.render_mode = "rgb_array"
        self.observation_space, self.action_space = spaces_of(cameras, render_size)  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode of a seed, after the settling steps."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(NUM_STARTS)) if seed is None else seed
        start = number % NUM_STARTS
        self._put_back()
        np.random.seed(FIRST_SEED + start)  # noqa: NPY002
        self._place()
        raw = self._control.set_init_state(self._starts[start])
        for _ in range(SETTLING_STEPS):
            raw = self._simulator.step(SETTLING_ACTION)[0]
        self._num_steps = 0
        return self._observation(raw), {"success": False}

    def step(
        self, action: np.ndarray
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Take one step of 50 ms. The episode ends when LIBERO's goal is reached."""
        raw, _, done, _ = self._simulator.step(action.astype(np.float64))
        self._num_steps += 1
        success = bool(done)
        truncated = self._num_steps >= self._limit and not success
        return self._observation(raw), float(success), success, truncated, {"success": success}

    def draw_pictures(self) -> dict[str, np.ndarray]:
        """Return the picture (Y, X, 3) uint8 of each camera in the last observation."""
        return {
            f"image/{camera}": picture_of(self._pictures.draw(CAMERAS[camera]))
            for camera in self._cameras
        }

    def render(self) -> Any:
        """Return a picture (Y, X, 3) uint8 for people, in which left and right are as they are."""
        if not self._cameras:
            self._pictures.keep(self._data)
        return self._pictures.draw(CAMERAS["image"])[::-1].copy()

    def close(self) -> None:
        """Free the renderer and the scene. Closing twice is the same as closing once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pictures.close()
        self._control.close()
        # robosuite's objects refer to each other in circles
        del self._control, self._simulator, self._model, self._data, self._pictures
        return_memory()

    def _observation(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {"state": state_of(raw).astype(np.float32)}

    def _place(self) -> None:
        """Place the scene at random. LIBERO's own loop for this hides every other error."""
        from robosuite.utils.errors import RandomizationError

        for attempt in range(MAX_PLACEMENTS):
            try:
                self._simulator.reset()
                return
            except RandomizationError:
                if attempt == MAX_PLACEMENTS - 1:
                    raise

    def _put_back(self) -> None:
        """Undo the changes of the last episode that robosuite's reset leaves."""
        for name, value in self._fresh.items():
            getattr(self._model, name)[:] = value
        gripper = self._simulator.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)

    def _keep_observables(self) -> None:
        """Switch off the parts of the observation that are not read, and keep states for pictures.

        robosuite samples its observables in the middle of a step. Another observable with the same
        rate is sampled at the same moment, and it keeps the state that pictures are drawn of.
        """
        from robosuite.utils.observables import Observable, sensor

        for name, observable in self._simulator._observables.items():
            if name not in STATE_KEYS:
                observable.set_enabled(False)
                observable.set_active(False)
        if not self._cameras:
            return

        @sensor(modality="pitune")
        def seen(obs_cache: Any) -> float:
            self._pictures.keep(self._data)
            return 0.0

        kept = Observable(name="pitune_seen", sensor=seen, sampling_rate=CONTROL_HZ)
        kept.set_active(False)
        self._simulator.add_observable(kept)


def spaces_of(cameras: tuple[str, ...], render_size: int) -> tuple[Dict, Box]:
    """Return the spaces of the observations and of the actions, the same for all tasks."""
    picture = Box(0, 255, (render_size, render_size, 3), np.uint8)
    parts = {f"image/{camera}": picture for camera in cameras}
    state = Box(-np.inf, np.inf, (STATE_DIM,), np.float32)
    return Dict({"state": state, **parts}), Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
