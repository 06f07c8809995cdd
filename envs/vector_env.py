"""The environment contract: E simulators that step together, in torch tensors.

The shape is Gymnasium's (`reset`, `step`, `terminated` and `truncated` in Gymnasium's meaning, an
`info` dict); four things are pinned down that Gymnasium leaves open, because reinforcement learning
on action chunks needs them:

- **No auto-reset.** An ended environment waits until `reset` names it in `env_idx`.
- **Partial steps.** `step(action, active)` leaves the environments that are not active untouched.
- **Seeds per episode.** `reset` takes one seed for each environment that it resets, and the seed
  alone fixes the initial state. Equal seeds are equal starts: so a group reset is asked for.
- **Fresh tensors.** What is returned is never written to again.

Letters: E envs, S state dim, A action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Observation = dict[str, Tensor]
"""`state` (E, S) float32 [robot units]; `image/<camera>` (E, C, Y, X) uint8; `task_id` (E,)."""


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """What an algorithm and a policy need to know of an environment before its first step."""

    id: str
    """The name it was made by, e.g. `mujoco/PickCube`."""
    num_envs: int
    """E."""
    state_dim: int
    """S."""
    action_low: tuple[float, ...]
    """Lower bound of each action dimension (A) [robot units]."""
    action_high: tuple[float, ...]
    """Upper bound of each action dimension (A) [robot units]."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    control_hz: float
    """Environment steps per simulated second [Hz]; the frame rate of videos."""
    tasks: tuple[str, ...]
    """Instructions in words; `task_id` is an index into this table."""
    cameras: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Camera name -> (C, Y, X) of its picture."""
    simulator: str
    """Package and version of the simulator, for the record of a run."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where its tensors live."""
    deterministic_reset: bool = True
    """Whether a seed alone fixes the initial state. Group resets and exact resumption need it."""
    success_signal: bool = True
    """Whether `info["success"]` means something; without it there is no success rate."""

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.action_low)


class StepResult(NamedTuple):
    """One step of E environments; unpacks in Gymnasium's order.

    Rows that were not active keep their last observation, reward 0 and False everywhere.
    """

    obs: Observation
    reward: Tensor
    """(E,) float32."""
    terminated: Tensor
    """(E,) bool: the task ended (here: success, or failure beyond repair)."""
    truncated: Tensor
    """(E,) bool: the time ran out."""
    info: dict[str, Tensor]
    """`success` (E,) bool: solved at this step. `invalid` (E,) bool: the simulator broke down, and
    the episode must not be counted (such a row is truncated)."""


class Expert(Protocol):
    """A scripted or planning policy that sees the simulator's true state."""

    def act(self) -> Tensor:
        """Return the expert's action (E, A) [robot units] in the environments' present state."""


class VectorEnv(Protocol):
    """E simulators behind one interface. See the module docstring for the rules."""

    spec: EnvSpec

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (n,) int64.
            env_idx: Which environments to reset (n,) int64; all E by default.
        """

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, A) [robot units], inside the bounds. Rows that are not active are ignored.
            active: (E,) bool.
        """

    def render(self) -> Tensor:
        """Return one picture of every environment, for people to look at (E, Y, X, 3) uint8.

        Raises:
            RuntimeError: this machine or simulator cannot render; the message says what is missing.
        """

    def expert(self) -> Expert:
        """Return a new expert for these environments.

        Raises:
            ValueError: nobody has written an expert for this task.
        """

    def close(self) -> None:
        """Free processes and renderers."""
