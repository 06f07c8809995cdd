"""Steps per second of `libero/`, side by side with the loop of LIBERO's own package, states only.

python tests/envs/libero/measure_speed.py [SUITE TASK] [REPETITIONS]

Both play the same starts with the same actions in one process and take turns, so that other
programs on the machine slow down both. The adapter's steps include the conversion to tensors, the
checks and the bookkeeping of `WorkerEnv`. Episodes are 100 steps after the settling.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from pitune import envs
from pitune.envs.libero.package import control_env, quiet
from pitune.envs.libero.suites import task_named

NUM_STEPS = 100


def timed(play: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of a call: by the clock, and of this process's CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    play()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(suite: str = "spatial", task: str = "0", repetitions: str = "3") -> None:
    """Print the speeds and their ratios."""
    torch.set_num_threads(1)
    files = task_named(suite, task)
    states = files.read_starts()
    generator = np.random.default_rng(0)
    actions = np.clip(generator.normal(size=(NUM_STEPS, 7)), -1, 1).astype(np.float32)
    with quiet():
        raw = control_env()(
            bddl_file_name=str(files.scene), use_camera_obs=False, has_offscreen_renderer=False
        )
    env = envs.make(envs.config_for(f"libero/{suite}/{task}", num_envs=1, num_workers=0))

    def reset_raw(start: int) -> None:
        raw.seed(7 + start)
        raw.reset()
        raw.set_init_state(states[start])
        for _ in range(10):
            raw.step([0.0] * 6 + [-1.0])

    def step_raw(block: np.ndarray) -> None:
        for action in block:
            raw.step(action.tolist())

    def step_ours(block: np.ndarray) -> None:
        for action in block:
            env.step(torch.from_numpy(action)[None], torch.tensor([True]))

    print(f"{files.id}, {NUM_STEPS} steps, {env.spec.simulator}")
    for start in range(int(repetitions)):
        resets = (
            timed(functools.partial(reset_raw, start)),
            timed(functools.partial(env.reset, torch.tensor([start]))),
        )
        # turns of five steps
        steps = np.zeros((2, 2))  # (LIBERO or adapter, wall or CPU)
        for block in np.array_split(actions, NUM_STEPS // 5):
            steps[0] += timed(functools.partial(step_raw, block))
            steps[1] += timed(functools.partial(step_ours, block))
        for clock, name in enumerate(("wall", "CPU")):
            own, adapter = (NUM_STEPS / part[clock] for part in steps)
            print(
                f"  {name}: LIBERO {own:.1f} steps/s, adapter {adapter:.1f}, ratio "
                f"{adapter / own:.3f}; reset with settling: LIBERO {resets[0][clock]:.2f} s, "
                f"adapter {resets[1][clock]:.2f} s"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
