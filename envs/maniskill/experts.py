"""Experts for four ManiSkill tasks: a proportional controller with a sequence of phases.

In each phase the tool moves to a target with the gripper open or closed, until a condition ends the
phase. The experts act in `pd_ee_delta_pos` and read the simulator's true poses. The arm covers only
a part of a commanded displacement within a step, and a gain below 1 prevents overshoot.

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
"""Fraction of the way to the target that one action commands [-]."""
OPEN, CLOSED = 1.0, -1.0
"""Gripper commands [-]."""
ON_TABLE = 0.02
"""Height of a cube's center, and of the tool that pushes it [m]."""


@dataclass(frozen=True)
class PhaseInput:
    """The quantities that a phase depends on.

    Example:
        >>> origin = torch.zeros(2, 3)
        >>> inputs = PhaseInput(origin, shift(origin, z=0.02), origin, torch.zeros(2))
        >>> carry(inputs).shape  # (E, 3)
        torch.Size([2, 3])
    """

    tool: Tensor
    """Tool center point (E, 3) [m]."""
    cube: Tensor
    """Cube to move (E, 3) [m]."""
    goal: Tensor
    """Target of its center, or the cube to stack it on (E, 3) [m]."""
    num_steps: Tensor
    """Steps since the phase began (E,)."""


@dataclass(frozen=True)
class Phase:
    """One part of a task.

    Example:
        >>> close = Phase(lambda v: v.cube, CLOSED, lambda v, target: v.num_steps >= 4)
        >>> origin = torch.zeros(2, 3)
        >>> inputs = PhaseInput(origin, origin, origin, num_steps=torch.tensor([3, 4]))
        >>> close.is_finished(inputs, close.target(inputs)).tolist()
        [False, True]
    """

    target: Callable[[PhaseInput], Tensor]
    """Target of the tool (E, 3) [m]."""
    gripper: float
    """Gripper command [-]."""
    is_finished: Callable[[PhaseInput, Tensor], Tensor] = lambda inputs, _: torch.zeros_like(
        inputs.num_steps
    ).bool()
    """Whether the next phase begins (E,), from the inputs and the target (by default never)."""


def shift(point: Tensor, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """Return points (E, 3) plus a fixed offset [m]."""
    return point + torch.tensor((x, y, z), device=point.device)


def place_on_table(x: Tensor, y: Tensor) -> Tensor:
    """Return points (E, 3) [m] at the height of a cube on the table, from coordinates (E,)."""
    return torch.stack([x, y, torch.full_like(x, ON_TABLE)], dim=-1)


def is_near(first: Tensor, second: Tensor, distance: float, axes: slice = slice(3)) -> Tensor:
    """Return whether the distance of points (E, 3) along `axes` is below `distance` [m] (E,)."""
    return (first - second)[:, axes].norm(dim=-1) < distance


def carry(inputs: PhaseInput, z: float = 0.0) -> Tensor:
    """Return the tool position that puts a held cube `z` [m] above the goal (E, 3)."""
    return shift(inputs.tool + inputs.goal - inputs.cube, z=z)


def lift_and_carry(inputs: PhaseInput) -> Tensor:
    """Return a target (E, 3) [m] that goes up first, so that the lower cube is not hit."""
    low = inputs.cube[:, 2] < inputs.goal[:, 2] + 0.06
    return torch.where(low[:, None], shift(inputs.tool, z=0.04), carry(inputs, z=0.07))


SIDEWAYS, UPWARDS = slice(2), slice(2, 3)

GRASP = (
    Phase(lambda v: shift(v.cube, z=0.06), OPEN, lambda v, t: is_near(v.tool, t, 0.008, SIDEWAYS)),
    Phase(lambda v: v.cube, OPEN, lambda v, t: is_near(v.tool, t, 0.012)),
    Phase(lambda v: v.cube, CLOSED, lambda v, t: v.num_steps >= 4),
)

PHASES: dict[str, tuple[Phase, ...]] = {
    "PickCube-v1": (*GRASP, Phase(carry, CLOSED)),
    "PullCube-v1": (
        Phase(
            lambda v: shift(v.cube, x=0.055, z=0.08),
            CLOSED,
            lambda v, t: is_near(v.tool, t, 0.015, SIDEWAYS),
        ),
        Phase(
            lambda v: place_on_table(v.cube[:, 0] + 0.055, v.cube[:, 1]),
            CLOSED,
            lambda v, t: is_near(v.tool, t, 0.012, UPWARDS),
        ),
        Phase(lambda v: place_on_table(v.goal[:, 0] + 0.02, v.cube[:, 1]), CLOSED),
    ),
    "PushCube-v1": (
        Phase(
            lambda v: place_on_table(v.cube[:, 0] - 0.07, v.cube[:, 1]),
            CLOSED,
            lambda v, t: is_near(v.tool, t, 0.015),
        ),
        Phase(lambda v: place_on_table(v.goal[:, 0] - 0.02, v.cube[:, 1]), CLOSED),
    ),
    "StackCube-v1": (
        *GRASP,
        Phase(lift_and_carry, CLOSED, lambda v, t: is_near(v.cube, v.goal, 0.01, SIDEWAYS)),
        Phase(
            lambda v: carry(v, z=0.041),
            CLOSED,
            lambda v, t: is_near(v.cube, shift(v.goal, z=0.04), 0.004, UPWARDS),
        ),
        Phase(lambda v: v.tool, OPEN, lambda v, t: v.num_steps >= 4),
        Phase(lambda v: shift(v.tool, z=0.05), OPEN),
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
    """Check that there is an expert for the task and the control mode.

    Raises:
        ValueError: there is none.
    """
    if task not in PHASES:
        raise ValueError(
            f"maniskill/{task} has no expert; the tasks with one are {sorted(PHASES)}, for other "
            "tasks record demonstrations"
        )
    if control_mode != CONTROL_MODE:
        raise ValueError(
            f"{control_mode=} has no expert for maniskill/{task}; make the environment with "
            f"options.control_mode={CONTROL_MODE!r}"
        )


class ManiSkillExpert:
    """Expert for all environments of one ManiSkill simulation.

    Example:
        >>> expert = batch.expert()  # doctest: +SKIP
        >>> result = batch.step(expert.act(), active)  # doctest: +SKIP

    Args:
        simulation: ManiSkill's environment.
        task: Its name, e.g. `PickCube-v1`.
        control_mode: ManiSkill's name for the meaning of the actions.
        num_steps: Returns the number of steps of the current episodes (E,) int64.

    Raises:
        ValueError: there is no expert for this task or this control mode.
    """

    def __init__(
        self, simulation: Any, task: str, control_mode: str, num_steps: Callable[[], Tensor]
    ) -> None:
        check_expert(task, control_mode)
        self._simulation, self._num_steps = simulation, num_steps
        self._phases, self._actors = PHASES[task], ACTORS[task]
        self._phase = torch.zeros_like(num_steps())
        # The step at which the phase began (E,).
        self._phase_start = torch.zeros_like(self._phase)

    def act(self) -> Tensor:
        """Return the expert's action (E, 4) [robot units] in the current state."""
        steps = self._num_steps()
        # A new episode begins with the first phase.
        self._phase = torch.where(steps == 0, 0, self._phase)
        self._phase_start = torch.where(steps == 0, 0, self._phase_start)

        # positions (E, 3)
        cube, goal = (getattr(self._simulation, name).pose.p for name in self._actors)
        tool = self._simulation.agent.tcp.pose.p
        target, gripper = tool, torch.full_like(tool[:, 0], OPEN)
        # target and gripper of each row's phase
        for number, phase in enumerate(self._phases):
            in_phase = self._phase == number
            inputs = PhaseInput(tool, cube, goal, steps - self._phase_start)
            phase_target = phase.target(inputs)
            target = torch.where(in_phase[:, None], phase_target, target)
            gripper = torch.where(in_phase, phase.gripper, gripper)
            # The phase after a finished one begins in the same step.
            finished = in_phase & phase.is_finished(inputs, phase_target)
            self._phase = self._phase + finished.to(self._phase)
            self._phase_start = torch.where(finished, steps, self._phase_start)

        # (E, 3) and (E, 1) -> (E, 4)
        move = ((target - tool) * GAIN / REACH).clamp(-1.0, 1.0)
        return torch.cat([move, gripper[:, None]], dim=-1)
