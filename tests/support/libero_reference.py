"""LIBERO's own loop, run as a script, because two renderers in one process disturb each other.

python libero_reference.py SCENE STARTS OUT SIZE START...

It plays the starts one after the other with LIBERO's environment, which reads the scene again at
each reset, and stores its raw observations.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

NUM_STEPS = 12
KEYS = (
    *("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
    *("agentview_image", "robot0_eye_in_hand_image"),
)


def actions() -> np.ndarray:
    """Return the actions (steps, 7) float32 of each episode."""
    generator = np.random.default_rng(0)
    return np.clip(generator.normal(size=(NUM_STEPS, 7)), -1, 1).astype(np.float32)


def main(scene: str, starts: str, out: str, size: str, *numbers: str) -> None:
    """Store the observations of some starts."""
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    pixels = int(size)
    if pixels:
        env: Any = OffScreenRenderEnv(
            bddl_file_name=scene, camera_heights=pixels, camera_widths=pixels
        )
    else:
        from libero.libero.envs.env_wrapper import ControlEnv

        env = ControlEnv(bddl_file_name=scene, use_camera_obs=False, has_offscreen_renderer=False)
    states = np.load(starts)["states"]
    stored: dict[str, list[np.ndarray]] = {key: [] for key in KEYS if pixels or "image" not in key}
    for number in map(int, numbers):
        env.seed(7 + number)
        env.reset()
        raw = env.set_init_state(states[number])
        for _ in range(10):
            raw = env.step([0.0] * 6 + [-1.0])[0]
        for action in [*actions(), None]:
            for key, values in stored.items():
                values.append(raw[key])
            if action is not None:
                raw = env.step(action.astype(float).tolist())[0]
    np.savez(out, **{key: np.stack(values) for key, values in stored.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
