"""ManiSkill's tasks in words, in a file that does not import ManiSkill."""

from __future__ import annotations

import re

INSTRUCTIONS = {
    "LiftPegUpright-v1": "stand the peg upright on the table",
    "PegInsertionSide-v1": "insert the peg into the hole in the box",
    "PickCube-v1": "pick up the cube and hold it at the goal",
    "PlaceSphere-v1": "place the sphere in the bin",
    "PlugCharger-v1": "plug the charger into the receptacle",
    "PokeCube-v1": "poke the cube with the peg",
    "PullCube-v1": "pull the cube onto the target",
    "PullCubeTool-v1": "pull the cube closer with the tool",
    "PushCube-v1": "push the cube onto the target",
    "PushT-v1": "push the block onto its outline",
    "RollBall-v1": "roll the ball to the goal",
    "StackCube-v1": "stack the red cube on the green cube",
}
"""ManiSkill has no instructions. A task that is not listed here gets its name as instruction."""

UNSEEDED = ("RotateSingleObjectInHand",)
"""First part of the names of tasks whose initial state depends on earlier episodes (measured)."""


def instruction(task: str) -> str:
    """Return the instruction of a task.

    Example:
        >>> instruction("TurnFaucet-v1")
        'turn faucet'
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"-v\d+$", "", task)).lower()
    return INSTRUCTIONS.get(task, words)
