"""Meta-World's tasks of a Sawyer arm, in MuJoCo on the CPU.

Meta-World's own benchmark classes draw 50 configurations of object and goal once and use them for
training and test, and they ignore the seed of `reset`. Here the seed of an episode draws a new
configuration from the full random space of the task, so equal seeds give equal starts and the
number of different starts has no limit. An episode ends on success.

State (39): hand position (3) [m], gripper opening (1) [-], position and orientation of up to two
objects (14), these 18 numbers at the previous step, goal position (3) [m]. Action (4): hand
displacement (3) [0.01 m] and gripper force (1), in [-1, 1]. 80 steps per second. The full state
holds the poses of the objects and the goal. In the mode `rgb` it ends after the gripper (4), and
objects and goal are in the pictures of the cameras alone.

Source: McLean et al. 2025, "Meta-World+". Differs: the starts, as above. The time limit is 150
steps instead of 500. Most scripted experts need far less. The expert of peg-insert-side solves 79
of 100 starts in 150 steps, and 90 in 500 steps.

Letters: s robot state dim, d robot action dim, Y, X image pixels.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import warnings
from typing import Any

import gymnasium
import numpy as np

from pitune.envs.config import EnvConfig, require_default
from pitune.envs.metaworld.pictures import CAMERAS, ScenePictures
from pitune.envs.metaworld.registration import MetaWorldOptions
from pitune.envs.metaworld.tasks import INSTRUCTIONS, SUITES
from pitune.envs.rendering.cameras import check_cameras
from pitune.envs.rendering.opengl import opengl_backend
from pitune.envs.success import parse_success
from pitune.envs.suite.sub_env import MemberSpaces, SuiteSubEnv
from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.pool import Timeouts
from pitune.envs.workers.sub_envs import Factory
from pitune.extras import install_command

STATE_DIM = 39
GRIPPER_DIM = 4
"""First numbers of the state, which are those of the gripper: position and opening."""
TIME_LIMIT = 150
"""Length of an episode by default [steps]."""


class MetaWorldTask(gymnasium.Env[np.ndarray, np.ndarray]):
    """One Meta-World task whose episode seed fixes the configuration.

    Example:
        >>> env = MetaWorldTask("reach-v3", config)  # doctest: +SKIP
        >>> obs, info = env.reset(seed=0)  # doctest: +SKIP

    Args:
        task: Meta-World's name, e.g. `peg-insert-side-v3`.
        config: Its options are `MetaWorldOptions`.
    """

    def __init__(self, task: str, config: EnvConfig) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP

        sawyer = ALL_V3_ENVIRONMENTS[task](render_mode="rgb_array")
        # Meta-World's goal-observable classes set these attributes too, but they take no camera.
        sawyer._partially_observable = False
        del sawyer.sawyer_observation_space
        sawyer._set_task_called = True
        sawyer.seeded_rand_vec = True
        # The simulator raises when it is stepped beyond its own limit.
        sawyer.max_path_length = max(sawyer.max_path_length, config.time_limit(TIME_LIMIT))
        self._sawyer, self._reset_model = sawyer, sawyer.reset_model
        sawyer.reset_model = self._draw_once
        self._config, self._options = config, config.typed_options(MetaWorldOptions)
        self._pictures = ScenePictures(sawyer)
        self._expert = ENV_POLICY_MAP[task]()
        self._obs = np.zeros(STATE_DIM)
        # interface of a Gymnasium environment
        self.dt = float(sawyer.dt)
        self.action_space = sawyer.action_space
        self.observation_space = self._space()
        self.render_mode = "rgb_array"

    def _space(self) -> gymnasium.Space[Any]:
        """Return a Box of the state, or with cameras a Dict that has it and their pictures."""
        is_full = self._options.obs_mode == "state"
        dim, size = STATE_DIM if is_full else GRIPPER_DIM, self._config.image_size
        state = gymnasium.spaces.Box(-np.inf, np.inf, (dim,), np.float32)
        images = {
            f"image/{camera}": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
            for camera in self._config.cameras
        }
        return gymnasium.spaces.Dict({"state": state, **images}) if images else state

    def _draw_once(self) -> np.ndarray:
        """Reset the simulator and freeze the configuration that this reset drew.

        One reset of Meta-World calls this method twice and clears MuJoCo's state in between.
        Several tasks place an object relative to the previous pose of a body of the model. The
        start is independent of the previous episode only if both calls use the same configuration.
        """
        obs = self._reset_model()
        self._sawyer._freeze_rand_vec = True
        return obs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in the configuration of the seed. `draw_pictures` has the pictures."""
        super().reset(seed=seed)
        self._sawyer.np_random = self.np_random
        self._sawyer._freeze_rand_vec = False
        self._obs, _ = self._sawyer.reset()
        return self._observation(), {"success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step of 12.5 ms."""
        self._obs, dense, _, _, info = self._sawyer.step(action)
        success = parse_success(info["success"], "success", "metaworld")
        reward = float(dense) if self._config.reward == "dense" else float(success)
        return self._observation(), reward, success, False, {"success": success}

    def _observation(self) -> Any:
        """Return the present state (s,), with cameras in a dict."""
        is_full = self._options.obs_mode == "state"
        state = (self._obs if is_full else self._obs[:GRIPPER_DIM]).astype(np.float32)
        return {"state": state} if self._config.cameras else state

    def draw_pictures(self) -> dict[str, np.ndarray]:
        """Return the present pictures, `image/<camera>` (Y, X, 3) uint8."""
        size = self._config.image_size
        return {
            f"image/{camera}": self._pictures.draw(camera, size) for camera in self._config.cameras
        }

    def expert_action(self) -> np.ndarray:
        """Return the action (4,) of Meta-World's scripted policy."""
        with warnings.catch_warnings():
            # The script warns when it exceeds 1, which it does on purpose.
            warnings.simplefilter("ignore", UserWarning)
            action = self._expert.get_action(self._obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def render(self) -> Any:
        """Return a picture (Y, X, 3) uint8 through the camera for people."""
        return self._pictures.draw(self._options.camera, self._options.render_size)

    def close(self) -> None:
        """Free the renderer."""
        self._pictures.close()
        self._sawyer.close()


def make_metaworld(task: str, config: EnvConfig) -> WorkerEnv:
    """Return a batch of one Meta-World task.

    Args:
        task: Meta-World's name, e.g. `peg-insert-side-v3`.
        config: Its options are `MetaWorldOptions`.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: the task or the reward is unknown.
    """
    _check_settings((task,), config)
    return _workers(_factory(task, config), config, tasks=(INSTRUCTIONS[task],))


def make_metaworld_suite(members: tuple[str, ...], config: EnvConfig) -> WorkerEnv:
    """Return a batch in which the seed of an episode chooses one of several tasks.

    Each environment holds the simulators of the tasks that it played last
    (`MetaWorldOptions.held_tasks`).

    Args:
        members: Meta-World's names.
        config: Its options are `MetaWorldOptions`.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: a task or the reward is unknown.
    """
    _check_settings(members, config)
    factories = {f"metaworld/{task}": _factory(task, config) for task in members}
    suite = functools.partial(
        SuiteSubEnv,
        config.id,
        factories,
        MemberSpaces.of(next(iter(factories.values()))),
        config.typed_options(MetaWorldOptions).held_tasks,
    )
    return _workers(
        suite,
        config,
        tasks=tuple(INSTRUCTIONS[task] for task in members),
        seeded_tasks=True,
        task_names=tuple(factories),
    )


def _factory(task: str, config: EnvConfig) -> functools.partial[MetaWorldTask]:
    """Return the factory of one simulator."""
    return functools.partial(MetaWorldTask, task, config)


def _workers(
    factory: Factory, config: EnvConfig, *, tasks: tuple[str, ...], **spec_fields: Any
) -> WorkerEnv:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("metaworld", "mujoco")]
    return WorkerEnv(
        factory,
        id=config.id,
        num_envs=config.num_envs,
        num_workers=config.num_workers,
        max_episode_steps=config.time_limit(TIME_LIMIT),
        tasks=tasks,
        simulator=", ".join(versions),
        probe=False,  # its own tests hold what a probe would find out
        timeouts=Timeouts.of_config(config),
        max_failures=config.max_failures,
        **spec_fields,
    )


def _check_settings(tasks: tuple[str, ...], config: EnvConfig) -> None:
    """Check the settings before a simulator is built.

    Raises:
        ImportError: Meta-World is not installed.
        ValueError: a task, a camera or a setting is unknown.
        RuntimeError: cameras are requested and this machine cannot render.
    """
    check_cameras(config.id, config.cameras, CAMERAS)
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ImportError(
            f"{config.id} needs Meta-World; run {install_command('metaworld')}"
        ) from error
    names = [*ALL_V3_ENVIRONMENTS, *SUITES]
    for task in tasks:
        if task not in ALL_V3_ENVIRONMENTS:
            near = difflib.get_close_matches(task, names, n=3, cutoff=0.3)
            raise ValueError(f"task={task!r} is not a Meta-World task; near it are {near}")
    if config.reward not in ("sparse", "dense"):
        raise ValueError(f"reward={config.reward!r} must be 'sparse' or 'dense'")
    options = config.typed_options(MetaWorldOptions)
    if options.render_size < 1:
        raise ValueError(f"render_size={options.render_size} must be at least 1")

    # pictures
    if config.cameras:
        opengl_backend()  # raises on a machine that cannot draw
    else:
        require_default(options, "obs_mode", f"{config.id} without cameras", "name its cameras")
