"""Steps per second with and without pictures, for chunks of 1 and of 4 steps.

    python tests/envs/measure_pictures.py mujoco/PickCube front
    python tests/envs/measure_pictures.py metaworld/push-v3 corner2 gripperPOV

Prints a row of the table in docs/cameras.md: states alone, then pictures of 64 x 64 with h = 1,
with h = 4, and with h = 4 where every picture is drawn. Four environments, zero actions.
"""

from __future__ import annotations

import sys
import time

import torch

from pitune import envs

NUM_ENVS, SECONDS = 4, 8.0


def rate(env_id: str, cameras: tuple[str, ...], horizon: int, *, all_drawn: bool = False) -> float:
    """Return environment steps per second."""
    config = envs.config_for(env_id, num_envs=NUM_ENVS, num_workers=1, cameras=cameras)
    env = envs.make(config)
    env.draws_on_request &= not all_drawn
    chunk_env = envs.ChunkEnv(env, horizon, envs.EpisodeSeeds(NUM_ENVS, 0, "train"))
    td = chunk_env.reset()
    action = torch.zeros(NUM_ENVS, horizon, env.spec.action_dim)
    for _ in range(2):  # the first pictures compile shaders
        td = chunk_env.step_and_maybe_reset(td.set("action", action))[1]
    start, before = time.perf_counter(), chunk_env.num_env_steps
    while time.perf_counter() - start < SECONDS:
        td = chunk_env.step_and_maybe_reset(td.set("action", action))[1]
    steps, seconds = chunk_env.num_env_steps - before, time.perf_counter() - start
    env.close()
    return steps / seconds


def main() -> None:
    env_id, *names = sys.argv[1:]
    cameras = tuple(names)
    rates = [
        rate(env_id, (), 4),
        rate(env_id, cameras, 1),
        rate(env_id, cameras, 4),
        rate(env_id, cameras, 4, all_drawn=True),
    ]
    ratio = rates[2] / rates[3]
    numbers = " | ".join(f"{number:,.0f}" for number in rates)
    print(f"| `{env_id}` | {', '.join(cameras)} | {numbers} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
