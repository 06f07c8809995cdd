"""ManiSkill on the CPU: one simulation per environment, spread over worker processes.

Letters: s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from einops import rearrange
from gymnasium.spaces import Box, Dict

from pitune.envs.maniskill.batch import ManiSkillBatch
from pitune.envs.maniskill.experts import ManiSkillExpert, check_expert
from pitune.envs.vector_env import Observation
from pitune.envs.workers.env import WorkerEnv, WorkerExpert


class ManiSkillSubEnv(gymnasium.Env[Any, np.ndarray]):
    """One ManiSkill environment on the CPU, in numpy, for a worker process.

    The observation is a Box (s,), or with cameras a Dict of `state` and `image/<camera>` (Y, X, C).
    `reset` and `step` leave the pictures to `draw_pictures`.

    Example:
        >>> env = ManiSkillSubEnv(make_maniskill_batch("PickCube-v1", 1, config, "cpu"))
        ... # doctest: +SKIP

    Args:
        batch: The environment as a batch of one.
    """

    def __init__(self, batch: ManiSkillBatch) -> None:
        spec, self._batch = batch.spec, batch
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": spec.control_hz}
        self.render_mode = "rgb_array"
        # spaces, where pictures are (Y, X, C)
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        self.action_space = Box(low.astype(np.float32), high.astype(np.float32))
        state = Box(-np.inf, np.inf, (spec.state_dim,), np.float32)
        images = {
            f"image/{name}": Box(0, 255, (height, width, channels), np.uint8)
            for name, (channels, height, width) in spec.cameras.items()
        }
        self.observation_space = Dict({"state": state, **images}) if images else state
        self._expert: ManiSkillExpert | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode. The seed fixes its initial state."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._to_numpy(self._batch.reset(torch.tensor([number]))), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one control step with an action (d,) [robot units].

        Raises:
            FloatingPointError: the simulation broke down.
        """
        # (d,) -> (1, d), a batch of one
        result = self._batch.step(
            torch.from_numpy(action.astype(np.float32))[None],
            torch.tensor([True]),
            pictures=torch.tensor([False]),
        )
        if result.info["invalid"]:
            raise FloatingPointError(f"{self._batch.spec.id} returned numbers that are not finite")
        success = {"success": bool(result.info["success"])}
        return (
            self._to_numpy(result.obs),
            float(result.reward),
            bool(result.terminated),
            bool(result.truncated),
            success if self._batch.spec.success_signal else {},
        )

    def draw_pictures(self) -> dict[str, np.ndarray]:
        """Return the present pictures, `image/<camera>` (Y, X, C) uint8."""
        pictures = self._batch.draw(torch.tensor([True]))
        return {
            key: rearrange(picture[0], "C Y X -> Y X C").numpy()
            for key, picture in pictures.items()
        }

    def expert_action(self) -> np.ndarray:
        """Return the expert's action (d,) [robot units] in the present state.

        Raises:
            ValueError: there is no expert for this task or control mode.
        """
        if self._expert is None:
            self._expert = self._batch.expert()
        return self._expert.act()[0].numpy()

    def render(self) -> Any:
        """Return a picture (Y, X, 3) uint8.

        Raises:
            RuntimeError: there is no Vulkan driver.
        """
        return self._batch.render()[0].numpy()

    def close(self) -> None:
        """Free the simulation."""
        self._batch.close()

    def _to_numpy(self, obs: Observation) -> Any:
        """Return the only row of an observation in the form of `observation_space`."""
        state = obs["state"][0].numpy()
        return {"state": state} if self._batch.spec.cameras else state


class ManiSkillWorkers(WorkerEnv):
    """ManiSkill environments in worker processes. `make_maniskill` makes one.

    Example:
        >>> from pitune import envs
        >>> from pitune.envs.maniskill.registration import ManiSkillOptions
        >>> options = ManiSkillOptions(backend="cpu")
        >>> config = envs.config_for("maniskill/PickCube-v1", num_envs=2, options=options)
        >>> env = envs.make(config)  # doctest: +SKIP
        >>> obs = env.reset(torch.tensor([0, 1]))  # doctest: +SKIP
        >>> env.expert().act().shape  # doctest: +SKIP
        torch.Size([2, 4])

    Args:
        task: ManiSkill's name.
        control_mode: ManiSkill's name for the meaning of the actions.
        arguments: Those of `WorkerEnv`.
    """

    def __init__(self, task: str, control_mode: str, **arguments: Any) -> None:
        self._task, self._control_mode = task, control_mode
        super().__init__(**arguments)

    def expert(self) -> WorkerExpert:
        """Return a new expert for these environments.

        Raises:
            ValueError: there is no expert for this task or control mode.
        """
        # Without this check the sub-environments would fail at the first action.
        check_expert(self._task, self._control_mode)
        return super().expert()
