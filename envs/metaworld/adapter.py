"""Meta-World's tasks of a Sawyer arm, in MuJoCo on the CPU.

Meta-World's own benchmark classes draw 50 configurations of object and goal once and share them
among training and test; `reset(seed=...)` is ignored. Here the seed of an episode draws a fresh
configuration from the task's full random space, so starts repeat, and never run out. An episode
ends on success.

State (39): hand position (3) [m], gripper opening (1) [-], position and orientation of up to two
objects (14), these 18 numbers of the step before, goal position (3) [m]. Action (4): hand
displacement (3) [0.01 m] and gripper force (1), in [-1, 1]. 80 steps per second.

Source: McLean et al. 2025, "Meta-World+". Differs: the starts, as above; the time limit is 150
steps instead of 500. That is ample for most of the scripted experts; the one of peg-insert-side
solves 79 of 100 starts within it, and 90 within 500 steps.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import warnings
from typing import Any, Literal

import gymnasium
import numpy as np

from pitune.envs.workers.env import WorkerEnv

Reward = Literal["sparse", "dense"]
STATE_DIM = 39


class MetaWorldTask(gymnasium.Env[np.ndarray, np.ndarray]):
    """One Meta-World task whose episode seed fixes the configuration.

    Args:
        task: Meta-World's name, e.g. `peg-insert-side-v3`.
        reward: `sparse` is 1 on success and else 0, `dense` Meta-World's own in [0, 10].
        max_episode_steps: Longest episode that will be asked for.
        camera: Meta-World's name of the camera that `render` looks through.
        image_size: Y = X of what `render` returns [pixels].
    """

    def __init__(
        self, task: str, reward: Reward, max_episode_steps: int, camera: str, image_size: int
    ) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        sawyer = ALL_V3_ENVIRONMENTS[task](
            render_mode="rgb_array", camera_name=camera, width=image_size, height=image_size
        )
        # What Meta-World's own goal-observable classes do; they offer no camera.
        sawyer._partially_observable = False
        del sawyer.sawyer_observation_space
        sawyer._set_task_called = True
        sawyer.seeded_rand_vec = True
        # The simulator refuses to go on beyond its own limit.
        sawyer.max_path_length = max(sawyer.max_path_length, max_episode_steps)
        self._sawyer, self._reset_model = sawyer, sawyer.reset_model
        sawyer.reset_model = self._draw_once
        self._reward, self._camera = reward, camera
        self._expert = ENV_POLICY_MAP[task]()
        self._obs = np.zeros(STATE_DIM)
        self.dt = float(sawyer.dt)
        self.action_space = sawyer.action_space
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)
        self.render_mode = "rgb_array"

    def _draw_once(self) -> np.ndarray:
        """Reset the simulator, and keep the configuration that this drew for the next time.

        One reset of Meta-World calls this twice, with MuJoCo's state cleared in between. Several
        tasks place an object by where the model's bodies stood before, so only with the same
        configuration both times is the start free of the previous episode.
        """
        obs = self._reset_model()
        self._sawyer._freeze_rand_vec = True
        return obs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in the configuration (39,) that belongs to the seed."""
        super().reset(seed=seed)
        self._sawyer.np_random = self.np_random
        self._sawyer._freeze_rand_vec = False
        self._obs, _ = self._sawyer.reset()
        return self._obs.astype(np.float32), {"success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step of 12.5 ms."""
        self._obs, dense, _, _, info = self._sawyer.step(action)
        success = bool(info["success"])
        reward = float(dense) if self._reward == "dense" else float(success)
        return self._obs.astype(np.float32), reward, success, False, {"success": success}

    def expert_action(self) -> np.ndarray:
        """Return the action (4,) of Meta-World's scripted policy."""
        with warnings.catch_warnings():
            # It warns that it asks for more than 1, which it does by design.
            warnings.simplefilter("ignore", UserWarning)
            action = self._expert.get_action(self._obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self) -> Any:
        """Return a picture (Y, X, 3) uint8."""
        picture = self._sawyer.render()
        # These cameras hang head down.
        return picture[::-1, ::-1].copy() if self._camera.startswith("corner") else picture

    def close(self) -> None:
        """Free the renderer."""
        self._sawyer.close()


def make_metaworld(
    task: str,
    num_envs: int,
    *,
    num_workers: int = 0,
    max_episode_steps: int = 150,
    reward: Reward = "sparse",
    camera: str = "corner2",
    image_size: int = 256,
) -> WorkerEnv:
    """Return a batch of one Meta-World task.

    Args:
        task: Meta-World's name, e.g. `peg-insert-side-v3`.
        num_envs: E.
        num_workers: Processes to spread them over; 0 for this one.
        max_episode_steps: Time limit.
        reward: `sparse` is 1 on success and else 0, `dense` Meta-World's own in [0, 10].
        camera: The camera that `render` looks through: topview, corner, corner2, corner3, corner4,
            behindGripper or gripperPOV.
        image_size: Y = X of what `render` returns [pixels].

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: there is no such task or reward.
    """
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ImportError(
            f'metaworld/{task} needs Meta-World; run pip install "pitune[metaworld]"'
        ) from error
    if task not in ALL_V3_ENVIRONMENTS:
        near = difflib.get_close_matches(task, ALL_V3_ENVIRONMENTS, n=3, cutoff=0.3)
        raise ValueError(f"task={task!r} is not a Meta-World task; near it are {near}")
    if reward not in ("sparse", "dense"):
        raise ValueError(f"reward={reward!r} must be 'sparse' or 'dense'")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("metaworld", "mujoco")]
    return WorkerEnv(
        functools.partial(MetaWorldTask, task, reward, max_episode_steps, camera, image_size),
        id=f"metaworld/{task}",
        num_envs=num_envs,
        num_workers=num_workers,
        max_episode_steps=max_episode_steps,
        tasks=(task.removesuffix("-v3").replace("-", " "),),
        simulator=", ".join(versions),
    )
