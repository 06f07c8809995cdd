"""A film of one episode, and the environment that takes its pictures.

Letters: E envs, N rows, Y, X image pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pitune.envs import CheckedEnv
from pitune.envs.vector_env import Observation, StepResult
from pitune.rl import EpisodeOutcome

MAX_HZ = 25.0
"""Greatest rate of pictures [Hz of simulated time]. Of a faster one not every step is drawn."""
MAX_WIDTH = 320
"""Greatest width of a picture [pixels]. A film is held in memory until it is written."""


@dataclass(kw_only=True)
class Take:
    """The pictures of an episode while it is played.

    Example:
        >>> take = Take(seed=7)
        >>> take.frames.append(np.zeros((4, 4, 3), np.uint8))
        >>> take.solved_at is None
        True
    """

    seed: int
    """Seed of the start."""
    frames: list[np.ndarray] = field(default_factory=list)
    """Pictures (Y, X, 3) uint8. The first one shows the start."""
    steps: list[int] = field(default_factory=list)
    """Environment steps before each picture."""
    solved: list[bool] = field(default_factory=list)
    """Whether each picture shows a solved state."""
    solved_at: int | None = None
    """Environment steps until the first success, or None without one."""
    num_steps: int = 0
    """Environment steps so far."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """The pictures of one episode of an evaluation, and its outcome.

    Example:
        >>> outcome = EpisodeOutcome(
        ...     index=3, seed=7, task_id=0, success_once=True, success_at_end=True, length=2
        ... )
        >>> film = Film(
        ...     outcome=outcome,
        ...     seed=7,
        ...     instruction="push the cube",
        ...     frames=[np.zeros((4, 4, 3), np.uint8)] * 3,
        ...     steps=[0, 1, 2],
        ...     marks=[False, False, True],
        ...     solved_at=2,
        ...     success=True,
        ...     fps=20.0,
        ... )
        >>> film.index
        3
    """

    outcome: EpisodeOutcome
    """Of the episode that the film shows."""
    seed: int
    """Seed of the start."""
    instruction: str
    """The words that the policy was given. Empty if the environment has none."""
    frames: list[np.ndarray]
    """Pictures (Y, X, 3) uint8, from the start to the end."""
    steps: list[int]
    """Environment steps before each picture."""
    marks: list[bool]
    """Whether each picture shows success: from the first one on, or only while the state is solved,
    by the environment's definition (`EnvConfig.success`)."""
    solved_at: int | None
    """Environment steps until the first success, or None without one."""
    success: bool | None
    """Success by the environment's definition, or None where it reports none."""
    fps: float
    """Pictures per simulated second [Hz]."""

    @property
    def index(self) -> int:
        """Place of the episode in the evaluation's list."""
        return self.outcome.index


class FilmedEnv(CheckedEnv):
    """An environment that takes a picture of its running episodes at every step.

    Example:
        >>> import torch
        >>> from pitune import envs
        >>> checked = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=1, num_workers=0))
        >>> env = FilmedEnv(checked)
        >>> obs = env.reset(torch.tensor([7]))
        >>> result = env.step(torch.zeros(1, 2), torch.tensor([True]))
        >>> len(env.takes[0].frames)
        2

    Args:
        env: The environment.

    Raises:
        RuntimeError: (from `reset` and `step`) it cannot render.
    """

    def __init__(self, env: CheckedEnv) -> None:
        # around the checked one, whose other owners count its calls
        super().__init__(env, env.spec.success_rule, env.spec.reward)
        self.takes: list[Take] = []
        """One for each episode, in the order of their beginning."""
        self.stride = max(1, round(env.spec.control_hz / MAX_HZ))
        """Environment steps from one picture to the next."""
        self._running: dict[int, Take] = {}

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        obs = super().reset(seed, env_idx)
        rows = range(self.spec.num_envs) if env_idx is None else env_idx.tolist()
        for row, number in zip(rows, seed.tolist(), strict=True):
            self._running[row] = Take(seed=number)
            self.takes.append(self._running[row])
        self._shoot(list(rows))
        return obs

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        result = super().step(action, active, pictures)
        # rows whose picture is due: every few steps, and always the last one
        ended = (result.terminated | result.truncated).tolist()
        solved, due = result.info["success"].tolist(), []
        for row in active.nonzero().flatten().tolist():
            take = self._running[row]
            take.num_steps += 1
            if solved[row] and take.solved_at is None:
                take.solved_at = take.num_steps
            if ended[row] or take.num_steps % self.stride == 0:
                due.append(row)
        self._shoot(due, solved)
        return result

    def _shoot(self, rows: list[int], solved: list[bool] | None = None) -> None:
        """Add a picture to the films of some rows (N).

        Args:
            rows: Their numbers.
            solved: Whether the present state of each environment (E) is solved. None at a start.
        """
        if not rows:
            return
        pictures = self.render()  # (E, Y, X, 3)
        for row in rows:
            take = self._running[row]
            take.frames.append(shrunk(pictures[row].cpu().numpy()))
            take.steps.append(take.num_steps)
            take.solved.append(solved is not None and solved[row])


def shrunk(picture: np.ndarray, max_width: int = MAX_WIDTH) -> np.ndarray:
    """Return a copy of a picture (Y, X, 3) uint8 that is at most `max_width` wide."""
    height, width = picture.shape[:2]
    if width <= max_width:
        return picture.copy()
    size = (max_width, round(height * max_width / width))
    image: Any = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    return np.array(image)
