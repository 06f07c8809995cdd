"""Scripted experts for the tabletop tasks: a few phases each, for E environments at once.

An expert reads the true state, computes the phase of every environment, and commands the
displacement to the target of that phase. The plans are pure functions, and only `TabletopExpert`
has a state.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pitune.envs.tabletop.arrays import Array, as_tensor, choose, library_of, norm, upward
from pitune.envs.tabletop.model import CUBE_HALF_SIZE
from pitune.envs.tabletop.tasks import Scene

STEP_SIZE = 0.06
"""Displacement of the tool's target by one unit of action [m]."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Targets of the expert in E environments.

    Example:
        >>> target, phase = torch.zeros(2, 3), torch.tensor([0, 3])
        >>> Plan(target=target, opened=phase < 2, phase=phase).opened.tolist()
        [True, False]
    """

    target: Array
    """Target of the tool (E, 3) [m]."""
    opened: Array
    """Whether to open the gripper (E,) bool."""
    phase: Array
    """The new phase (E,) int64."""


class SceneSource(Protocol):
    """The interface of the environment that an expert needs.

    Example:
        >>> from pitune.envs.tabletop.env import Tabletop
        >>> source: SceneSource = Tabletop("PickCube", 2)
        >>> source.scene.tool.shape, source.step_counts.shape  # (E, 3), (E,)
        ((2, 3), (2,))
    """

    @property
    def scene(self) -> Scene:
        """True state of all scenes."""

    @property
    def step_counts(self) -> Array:
        """Steps since the last reset (E,)."""

    @property
    def episode_counts(self) -> Array:
        """Resets so far (E,)."""


class TabletopExpert:
    """An `Expert` with a scripted plan.

    Example:
        >>> from pitune.envs.tabletop.env import Tabletop
        >>> env = Tabletop("PickCube", 2)
        >>> obs = env.reset(torch.tensor([0, 1]))
        >>> TabletopExpert(env, "PickCube").act().shape
        torch.Size([2, 4])

    Args:
        env: The environment to act in.
        task: Its task, a key of `PLANS`.
    """

    def __init__(self, env: SceneSource, task: str) -> None:
        self.env = env
        self.plan = PLANS[task]
        counts = env.step_counts
        self._phase, self._phase_start = 0 * counts, 0 * counts
        self._episode = 0 * counts - 1  # no episode

    def act(self) -> Tensor:
        """Return the expert's action (E, 4)."""
        scene, steps, episodes = self.env.scene, self.env.step_counts, self.env.episode_counts
        xp = library_of(steps)
        # a new episode begins with the first phase
        goes_on = episodes == self._episode
        phase, phase_start = self._phase * goes_on, self._phase_start * goes_on
        self._episode = episodes

        # next phase, and the step at which it began
        plan = self.plan(scene, phase, steps - phase_start)
        self._phase_start = xp.where(plan.phase != phase, steps, phase_start)
        self._phase = plan.phase

        # (E, 3) and (E, 1) -> (E, 4)
        displacement = ((plan.target - scene.tool) / STEP_SIZE).clip(-1, 1)
        grip = choose(plan.opened[:, None], 1.0, -1.0)
        return as_tensor(xp.concatenate([displacement, grip], axis=1), torch.float32)


def plan_pick(scene: Scene, phase: Array, num_steps: Array) -> Plan:
    """Hover over the cube (0), descend (1), close (2), carry it to the goal (3).

    Args:
        scene: True state.
        phase: Phase of each environment at the previous step (E,).
        num_steps: Steps since that phase began (E,).
    """
    phase, xp = _approach(scene, phase, num_steps), library_of(phase)
    target = xp.where((phase < 3)[:, None], _above_cube(scene, phase), scene.tool + scene.error)
    return Plan(target=target, opened=phase < 2, phase=phase)


def plan_stack(scene: Scene, phase: Array, num_steps: Array) -> Plan:
    """Grasp as in `plan_pick` (0-2), carry over the other cube (3), lower (4), release (5)."""
    tool, cube, error = scene.tool, scene.cubes[:, 0], scene.error
    xp, up = library_of(phase), upward(tool)
    releasing = phase == 5
    phase = _approach(scene, phase, num_steps)
    # phase changes in this step
    over = norm(error[:, :2]) < 0.01
    phase = xp.where((phase == 3) & over, 4, phase)
    phase = xp.where((phase == 4) & (error[:, 2] > -0.004), 5, phase)

    # Up first, so that the cube does not hit the other one.
    low = (cube[:, 2] < scene.goal[:, 2] + 0.015) & ~over
    carry = xp.where(low[:, None], tool + 0.05 * up, tool + error + 0.03 * up)
    # phase 4 moves by the remaining error, and phase 5 straight up
    lower = tool + error + 0.001 * up
    retreat = tool + choose((releasing & (num_steps > 2))[:, None], 0.05, 0.0) * up
    target = _above_cube(scene, phase)
    for number, phase_target in ((3, carry), (4, lower), (5, retreat)):
        target = xp.where((phase == number)[:, None], phase_target, target)
    # The first step of phase 5 only stops, because a cube that is released in motion slides off.
    return Plan(target=target, opened=(phase < 2) | releasing, phase=phase)


def plan_push(scene: Scene, phase: Array, num_steps: Array) -> Plan:
    """Hover behind the cube (0), descend (1), push along the line to the goal (2).

    It pushes at half the height of the cube, so that the cube does not tip, and at about half the
    gripper's speed, so that it does not fly away. It returns to phase 0 if the cube slips sideways.
    """
    # positions and directions in the plane (E, 2)
    xp = library_of(phase)
    tool, cube = scene.tool[:, :2], scene.cubes[:, 0, :2]
    distance = norm(scene.error[:, :2])[:, None] + 1e-9
    direction = scene.error[:, :2] / distance
    behind = cube - 0.065 * direction
    offset = tool - cube
    sideways = abs(offset[:, 0] * direction[:, 1] - offset[:, 1] * direction[:, 0])

    # phase changes in this step
    arrived = norm(tool - behind) < 0.01
    phase = xp.where((phase == 0) & arrived, 1, phase)
    phase = xp.where((phase == 1) & (scene.tool[:, 2] < CUBE_HALF_SIZE + 0.01), 2, phase)
    phase = xp.where((phase == 2) & (sideways > 0.03), 0, phase)

    # target of each phase
    contact = cube - 0.03 * direction
    push = tool + 0.4 * (contact - tool) + direction * distance.clip(max=0.025)
    rising = (phase == 0) & (scene.tool[:, 2] < 0.07)  # above the cube before moving around it
    hover = xp.where(rising[:, None], tool, behind)
    position = xp.where((phase == 2)[:, None], push, hover)
    height = choose((phase == 0)[:, None], 0.1, CUBE_HALF_SIZE)
    target = xp.concatenate([position, height], axis=1)
    return Plan(target=target, opened=phase < 0, phase=phase)  # never opened


def _approach(scene: Scene, phase: Array, num_steps: Array) -> Array:
    """Return the phase (E,) of a grasp: 0 hover, 1 descend, 2 close, 3 done."""
    offset = scene.tool - scene.cubes[:, 0]
    grasped = (phase == 2) & (num_steps >= 3)
    xp = library_of(phase)
    phase = xp.where((phase == 0) & (norm(offset[:, :2]) < 0.008), 1, phase)
    phase = xp.where((phase == 1) & (offset[:, 2] < 0.012), 2, phase)
    return xp.where(grasped, 3, phase)


def _above_cube(scene: Scene, phase: Array) -> Array:
    """Return the target (E, 3) [m] over cube 0, high in phase 0 and low afterwards."""
    height = choose((phase == 0)[:, None], 0.07, 0.005)
    return scene.cubes[:, 0] + height * upward(scene.cubes)


PLANS: dict[str, Callable[[Scene, Array, Array], Plan]] = {
    "PushCube": plan_push,
    "PickCube": plan_pick,
    "StackCube": plan_stack,
}
"""Task -> its plan."""
