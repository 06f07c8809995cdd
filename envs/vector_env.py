"""The environment contract: E simulators that step together, in torch tensors.

The interface is Gymnasium's: `reset`, `step`, `terminated` and `truncated` in Gymnasium's meaning,
an `info` dict. Reinforcement learning on action chunks needs four rules that Gymnasium leaves open:

- **No auto-reset.** An ended environment waits until `reset` contains it in `env_idx`.
- **Partial steps.** `step(action, active)` does not change the environments that are not active.
- **Seeds per episode.** `reset` takes one seed for each environment that it resets, and the seed
  alone fixes the initial state. A group of equal starts is requested by equal seeds.
- **Fresh tensors.** Returned tensors are never written to again.
- **Pictures on request.** An adapter whose `step` takes a third argument, `pictures`, draws only
  those that are read. A policy reads one observation of each chunk, and a picture is often more
  expensive than the step.

Letters: E envs, N rows, s robot state dim, d robot action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pitune.envs.success import SuccessRule

Observation = dict[str, Tensor]
"""`state` (E, s) float32 [robot units]. `image/<camera>` (E, C, Y, X) uint8. `task_id` (E,)."""


def with_index(device: torch.device) -> torch.device:
    """Return a device with its index, which tensors on it have. Without CUDA it is unchanged.

    `cuda` and `cuda:0` are not equal, and MuJoCo Warp asks for the index.

    Example:
        >>> with_index(torch.device("cpu"))
        device(type='cpu')
    """
    if device.type != "cuda" or device.index is not None or not torch.cuda.is_available():
        return device
    return torch.device("cuda", torch.cuda.current_device())


@dataclass(frozen=True, kw_only=True)
class EnvSpec:
    """The properties of an environment that are known before its first step.

    Example:
        >>> spec = EnvSpec(
        ...     id="blocks/Stack",
        ...     num_envs=8,
        ...     state_dim=12,
        ...     action_low=(-1.0, -1.0),
        ...     action_high=(1.0, 1.0),
        ...     max_episode_steps=50,
        ...     control_hz=20.0,
        ...     tasks=("stack the blocks",),
        ...     simulator="blocks 1.0",
        ... )
        >>> spec.action_dim
        2
    """

    id: str
    """The name of the environment, e.g. `mujoco/PickCube`."""
    num_envs: int
    """E."""
    state_dim: int
    """s."""
    action_low: tuple[float, ...]
    """Lower bound of each action dimension (d) [robot units]."""
    action_high: tuple[float, ...]
    """Upper bound of each action dimension (d) [robot units]."""
    max_episode_steps: int
    """Steps after which an episode is truncated."""
    control_hz: float
    """Environment steps per simulated second [Hz], also the frame rate of videos."""
    tasks: tuple[str, ...]
    """Instructions in words. `task_id` is an index into this table."""
    cameras: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """Camera name -> (C, Y, X) of its picture."""
    simulator: str
    """Package and version of the simulator, recorded with a run."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of the observations and of all other tensors. `cuda` becomes `cuda:0`, as tensors
    name it."""
    deterministic_reset: bool = True
    """Whether a seed alone fixes the initial state. Group resets and exact resumption need it. For
    environments of users it is verified once, by two resets with one seed."""
    success_signal: bool = True
    """Whether `info["success"]` is meaningful. Without it there is no success rate."""
    success_rule: SuccessRule = "once"
    """The definition of an episode's success, see `pitune.envs.success`."""
    reward: str = ""
    """Definition of the reward in words, which demonstrations store. Empty if it is unknown."""
    seeded_tasks: bool = False
    """Whether the seed of an episode chooses its task: `task_id = seed % len(tasks)`. The seeds of
    training and evaluation then deal the tasks evenly."""
    task_names: tuple[str, ...] = ()
    """Name of each task for tables, e.g. `metaworld/reach-v3`. Empty if there are none."""
    num_starts: int | None = None
    """Fixed starts of each task, of which `(seed // len(tasks)) % num_starts` is played. They are
    split between training and evaluation (`start_split`). None for no limit."""
    shared_starts: bool = False
    """Whether training and evaluation share the fixed starts, each of them taking all."""
    tasks_without_expert: tuple[int, ...] = ()
    """Tasks of a suite whose expert is missing. It does not act in their episodes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", with_index(self.device))
        if self.task_names and len(self.task_names) != len(self.tasks):
            raise ValueError(
                f"task_names={self.task_names} of {self.id} must have one name for each of its "
                f"{len(self.tasks)} tasks"
            )
        if self.num_starts is not None and len(self.tasks) > 1 and not self.seeded_tasks:
            raise ValueError(
                f"num_starts={self.num_starts} of {self.id} is given for {len(self.tasks)} tasks, "
                "so a seed must choose the task too; set seeded_tasks=True"
            )

    @property
    def action_dim(self) -> int:
        """Robot action dim d."""
        return len(self.action_low)


class StepResult(NamedTuple):
    """One step of E environments, in Gymnasium's order.

    Rows that were not active keep their last observation, with reward 0 and all flags False.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> obs, reward, terminated, truncated, info = env.step(
        ...     torch.zeros(2, 2), torch.tensor([True, False])
        ... )
        >>> info["success"].shape
        torch.Size([2])
    """

    obs: Observation
    reward: Tensor
    """(E,) float32."""
    terminated: Tensor
    """(E,) bool: the task ended, by success or by a final failure."""
    truncated: Tensor
    """(E,) bool: the time limit was reached."""
    info: dict[str, Tensor]
    """`success` (E,) bool: solved at this step. `invalid` (E,) bool: the simulator broke down, and
    the episode must not be counted. Such a row is truncated."""


class Expert(Protocol):
    """A scripted or planning policy with access to the simulator's true state.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> env.expert().act().shape
        torch.Size([2, 2])
    """

    def act(self) -> Tensor:
        """Return the expert's action (E, d) [robot units] in the current state."""


class VectorEnv(Protocol):
    """E simulators behind one interface, with the rules of the module docstring.

    `DrawsOnRequest` is the same interface with a further argument of `step`.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2))
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> result = env.step(torch.zeros(2, 2), active=torch.tensor([True, True]))
        >>> obs = env.reset(torch.tensor([2]), env_idx=torch.tensor([1]))  # restarts the second
    """

    spec: EnvSpec

    def reset(self, seed: Tensor, env_idx: Tensor | None = None) -> Observation:
        """Start new episodes and return the observation of all E environments.

        Args:
            seed: One seed in [0, 2^31) per environment that is reset (N,) int64.
            env_idx: Environments to reset (N,) int64. All E by default.
        """

    def step(self, action: Tensor, active: Tensor) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, d) [robot units], inside the bounds. Rows that are not active are ignored.
            active: (E,) bool.
        """

    def render(self) -> Tensor:
        """Return one picture of every environment for people, not for policies (E, Y, X, 3) uint8.

        Raises:
            RuntimeError: this machine or simulator cannot render. The message names the cause.
        """

    def expert(self) -> Expert:
        """Return a new expert for these environments.

        Raises:
            ValueError: there is no expert for this task.
        """

    def close(self) -> None:
        """End the processes and free the renderers."""


class DrawsOnRequest(VectorEnv, Protocol):
    """A `VectorEnv` that draws only the pictures that are read.

    Example:
        >>> from pitune import envs
        >>> env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2, cameras=("top",)))
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> both = torch.tensor([True, True])
        >>> next_obs = env.step(torch.ones(2, 2), both, torch.tensor([True, False])).obs
        >>> (next_obs["image/top"] != obs["image/top"]).flatten(1).any(1)  # the second is kept
        tensor([ True, False])
    """

    def step(self, action: Tensor, active: Tensor, pictures: Tensor | None = None) -> StepResult:
        """Advance the active environments by one control step.

        Args:
            action: (E, d) [robot units], inside the bounds. Rows that are not active are ignored.
            active: (E,) bool.
            pictures: Active environments whose pictures are read after this step (E,) bool. By
                default all of them. Any other one keeps its last pictures, unless its episode ends
                in this step: the last observation of an episode is always complete.
        """


def draws_on_request(env: VectorEnv) -> bool:
    """Return whether an environment draws only the pictures that are read (`DrawsOnRequest`).

    Example:
        >>> from pitune.envs.mock.reach import Reach, Script
        >>> draws_on_request(Reach(2)), draws_on_request(Script(1, lengths=(3,), ends=("time",)))
        (True, False)
    """
    return "pictures" in inspect.signature(env.step).parameters
