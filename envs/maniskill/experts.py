"""Experts for four ManiSkill tasks: a proportional controller that goes through phases.

In each phase the tool heads for a target with the gripper open or closed, until the phase is over.
They act in `pd_ee_delta_pos` and see the simulator's true poses. The PD arm covers only a part of
a commanded displacement within a step, and a gain below 1 keeps it from overshooting.

Letters: E envs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CONTROL_MODE = "pd_ee_delta_pos"
REACH = 0.1
"""Displacement of a full action [m]."""
GAIN = 0.7
"""Part of the way to the target that one action asks for [-]."""
OPEN, CLOSED = 1.0, -1.0
"""Gripper commands [-]."""
ON_TABLE = 0.02
"""Height of a cube's center, and of the tool that pushes it [m]."""


@dataclass(frozen=True)
class View:
    """What a phase sees."""

    tool: Tensor
    """Tool center point (E, 3) [m]."""
    cube: Tensor
    """Cube to be moved (E, 3) [m]."""
    goal: Tensor
    """Where its center should be, or the cube to put it on (E, 3) [m]."""
    waited: Tensor
    """Steps since the phase began (E,)."""


@dataclass(frozen=True)
class Phase:
    """One part of a task."""

    target: Callable[[View], Tensor]
    """Where the tool should go (E, 3) [m]."""
    gripper: float
    """Gripper command [-]."""
    over: Callable[[View, Tensor], Tensor] = lambda view, _: torch.zeros_like(view.waited).bool()
    """Whether the next phase begins (E,), from the view and the target; by default never."""


def shifted(point: Tensor, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """Return points (E, 3) moved by a fixed offset [m]."""
    return point + torch.tensor((x, y, z), device=point.device)


def along_table(x: Tensor, y: Tensor) -> Tensor:
    """Return points (E, 3) [m] at the height of a cube on the table, from coordinates (E,)."""
    return torch.stack([x, y, torch.full_like(x, ON_TABLE)], dim=-1)


def close(first: Tensor, second: Tensor, distance: float, axes: slice = slice(3)) -> Tensor:
    """Return whether points (E, 3) are closer than `distance` [m] in some axes (E,)."""
    return (first - second)[:, axes].norm(dim=-1) < distance


def carry(view: View, z: float = 0.0) -> Tensor:
    """Return where the tool must be for the cube in it to be `z` [m] above the goal (E, 3)."""
    return shifted(view.tool + view.goal - view.cube, z=z)


def lift_and_carry(view: View) -> Tensor:
    """Return the target (E, 3) [m] that goes up first, so as not to hit the lower cube."""
    low = view.cube[:, 2] < view.goal[:, 2] + 0.06
    return torch.where(low[:, None], shifted(view.tool, z=0.04), carry(view, z=0.07))


SIDEWAYS, UPWARDS = slice(2), slice(2, 3)

GRASP = (
    Phase(lambda v: shifted(v.cube, z=0.06), OPEN, lambda v, t: close(v.tool, t, 0.008, SIDEWAYS)),
    Phase(lambda v: v.cube, OPEN, lambda v, t: close(v.tool, t, 0.012)),
    Phase(lambda v: v.cube, CLOSED, lambda v, t: v.waited >= 4),
)

PHASES: dict[str, tuple[Phase, ...]] = {
    "PickCube-v1": (*GRASP, Phase(carry, CLOSED)),
    "PullCube-v1": (
        Phase(
            lambda v: shifted(v.cube, x=0.055, z=0.08),
            CLOSED,
            lambda v, t: close(v.tool, t, 0.015, SIDEWAYS),
        ),
        Phase(
            lambda v: along_table(v.cube[:, 0] + 0.055, v.cube[:, 1]),
            CLOSED,
            lambda v, t: close(v.tool, t, 0.012, UPWARDS),
        ),
        Phase(lambda v: along_table(v.goal[:, 0] + 0.02, v.cube[:, 1]), CLOSED),
    ),
    "PushCube-v1": (
        Phase(
            lambda v: along_table(v.cube[:, 0] - 0.07, v.cube[:, 1]),
            CLOSED,
            lambda v, t: close(v.tool, t, 0.015),
        ),
        Phase(lambda v: along_table(v.goal[:, 0] - 0.02, v.cube[:, 1]), CLOSED),
    ),
    "StackCube-v1": (
        *GRASP,
        Phase(lift_and_carry, CLOSED, lambda v, t: close(v.cube, v.goal, 0.01, SIDEWAYS)),
        Phase(
            lambda v: carry(v, z=0.041),
            CLOSED,
            lambda v, t: close(v.cube, shifted(v.goal, z=0.04), 0.004, UPWARDS),
        ),
        Phase(lambda v: v.tool, OPEN, lambda v, t: v.waited >= 4),
        Phase(lambda v: shifted(v.tool, z=0.05), OPEN),
    ),
}

ACTORS = {
    "PickCube-v1": ("cube", "goal_site"),
    "PullCube-v1": ("obj", "goal_region"),
    "PushCube-v1": ("obj", "goal_region"),
    "StackCube-v1": ("cubeA", "cubeB"),
}
"""ManiSkill's names of the cube that is moved and of its goal."""


def check_expert(task: str, control_mode: str) -> None:
    """Do nothing if there is an expert.

    Raises:
        ValueError: nobody has written one for this task or this control mode.
    """
    if task not in PHASES:
        raise ValueError(
            f"maniskill/{task} has no expert; the tasks with one are {sorted(PHASES)}, for others "
            "bring demonstrations"
        )
    if control_mode != CONTROL_MODE:
        raise ValueError(
            f"{control_mode=} has no expert for maniskill/{task}; make the environment with "
            f"control_mode={CONTROL_MODE!r}"
        )


class ManiSkillExpert:
    """Acts in all environments of one ManiSkill simulation.

    Args:
        simulation: ManiSkill's environment.
        task: Its name, e.g. `PickCube-v1`.
        control_mode: How its actions are meant.
        num_steps: Returns how many steps the present episodes have had (E,) int64.

    Raises:
        ValueError: nobody has written an expert for this task or this control mode.
    """

    def __init__(
        self, simulation: Any, task: str, control_mode: str, num_steps: Callable[[], Tensor]
    ) -> None:
        check_expert(task, control_mode)
        self._simulation, self._num_steps = simulation, num_steps
        self._phases, self._actors = PHASES[task], ACTORS[task]
        self._phase = torch.zeros_like(num_steps())
        # The step at which the phase began.
        self._began = torch.zeros_like(self._phase)

    def act(self) -> Tensor:
        """Return the expert's action (E, 4) [robot units] in the present state."""
        steps = self._num_steps()
        # Only a new episode goes back to the first phase.
        self._phase = torch.where(steps == 0, 0, self._phase)
        self._began = torch.where(steps == 0, 0, self._began)
        cube, goal = (getattr(self._simulation, name).pose.p for name in self._actors)
        tool = self._simulation.agent.tcp.pose.p
        target, gripper = tool, torch.full_like(tool[:, 0], OPEN)
        for number, phase in enumerate(self._phases):
            here = self._phase == number
            view = View(tool, cube, goal, steps - self._began)
            there = phase.target(view)
            target = torch.where(here[:, None], there, target)
            gripper = torch.where(here, phase.gripper, gripper)
            # A phase that is over is followed by the next one in this same step.
            over = here & phase.over(view, there)
            self._phase = self._phase + over.to(self._phase)
            self._began = torch.where(over, steps, self._began)
        move = ((target - tool) * GAIN / REACH).clamp(-1.0, 1.0)
        return torch.cat([move, gripper[:, None]], dim=-1)
