"""Meta-World's tasks in words, in a file that does not import Meta-World."""

from __future__ import annotations

INSTRUCTIONS = {
    "assembly-v3": "put the ring over the peg",
    "basketball-v3": "put the basketball into the hoop",
    "bin-picking-v3": "move the cube from the left bin to the right bin",
    "box-close-v3": "put the lid on the box",
    "button-press-topdown-v3": "press the button down from above",
    "button-press-topdown-wall-v3": "reach over the wall and press the button down from above",
    "button-press-v3": "press the button on the front of the box",
    "button-press-wall-v3": "reach around the wall and press the button on the front of the box",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "take the ring off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door",
    "drawer-close-v3": "close the drawer",
    "drawer-open-v3": "open the drawer",
    "faucet-close-v3": "turn the faucet clockwise to close it",
    "faucet-open-v3": "turn the faucet counterclockwise to open it",
    "hammer-v3": "hit the nail with the hammer",
    "hand-insert-v3": "put the hand into the hole",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "peg-insert-side-v3": "insert the peg into the hole from the side",
    "peg-unplug-side-v3": "pull the peg out of the hole sideways",
    "pick-out-of-hole-v3": "pick the puck out of the hole and bring it to the goal",
    "pick-place-v3": "pick up the puck and hold it at the goal",
    "pick-place-wall-v3": "pick up the puck and lift it over the wall to the goal",
    "plate-slide-back-side-v3": "slide the plate sideways out of the cabinet",
    "plate-slide-back-v3": "slide the plate back out of the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-v3": "slide the plate into the cabinet",
    "push-back-v3": "pull the puck back to the goal",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "reach-v3": "move the hand to the goal",
    "reach-wall-v3": "move the hand around the wall to the goal",
    "shelf-place-v3": "pick up the block and put it on the shelf",
    "soccer-v3": "push the ball into the goal net",
    "stick-pull-v3": "pull the thermos to the goal with the stick",
    "stick-push-v3": "push the thermos to the goal with the stick",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-close-v3": "slide the window closed",
    "window-open-v3": "slide the window open",
}
"""Instruction of each task. Meta-World itself has none."""

MT10 = (
    *("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3"),
    *("drawer-close-v3", "button-press-topdown-v3", "peg-insert-side-v3"),
    *("window-open-v3", "window-close-v3"),
)
"""Meta-World's ten tasks for multi-task learning, in its order."""
SUITES = {"MT10": MT10, "MT50": tuple(INSTRUCTIONS)}
"""Named suites with their members."""
