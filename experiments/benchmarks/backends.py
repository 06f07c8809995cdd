"""Compare the tabletop's physics engines: `python -m pitune.experiments.benchmarks.backends`.

It plays the expert in MuJoCo's C engine and in MuJoCo Warp from equal starts, and times both.
`--device cuda` runs Warp on a CUDA device. As a control it plays the C engine a second time, with a
tiny noise on the actions: contacts amplify a difference in either engine.

Letters: E envs, s robot state dim.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from torch import Tensor

from pitune import envs
from pitune.envs.tabletop.registration import TASKS, TabletopOptions, make_tabletop
from pitune.envs.vector_env import VectorEnv
from pitune.experiments.benchmarks.parts.clock import clock_of, wait_for

NOISE = 1e-6
"""Noise of the control [units of action], which is 6 cm times as much in the target of the tool."""
STEPS_AT_ONCE = 10
"""Steps between two looks at the clock."""
POSITIONS = [0, 1, 2, 8, 9, 10]
"""Positions of the tool and of cube 0 in the state."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """The expert's episodes in one engine.

    Example:
        >>> play(make("PickCube", 2, TabletopOptions(num_threads=1))).success
        tensor([True, True])
    """

    states: Tensor
    """Observed states (steps, E, s)."""
    running: Tensor
    """Whether each episode was running before each step (steps, E) bool."""
    success: Tensor
    """(E,) bool."""


C = TabletopOptions(num_threads=1)


def make(
    task: str, num_envs: int, options: TabletopOptions, max_episode_steps: int | None = None
) -> VectorEnv:
    """Return environments without the checks around them."""
    return make_tabletop(
        task,
        envs.config_for(
            f"mujoco/{task}",
            num_envs=num_envs,
            max_episode_steps=max_episode_steps,
            options=options,
        ),
    )


def play(env: VectorEnv, noise: float = 0.0) -> Episodes:
    """Play the expert in all environments, with seeds 0, 1, ...

    Args:
        env: The environments.
        noise: Standard deviation of the noise on each action.
    """
    env.reset(torch.arange(env.spec.num_envs))
    expert, active = env.expert(), torch.ones(env.spec.num_envs, dtype=torch.bool)
    success, states, running = ~active, [], []
    generator = torch.Generator().manual_seed(0)
    device = env.spec.device
    active, success = active.to(device), success.to(device)
    for _ in range(env.spec.max_episode_steps):
        action = expert.act().cpu()
        action = action + noise * torch.randn(action.shape, generator=generator)
        result = env.step(action.to(device), active)
        states.append(result.obs["state"].cpu())
        running.append(active.cpu())
        success = success | result.info["success"]
        active = active & ~(result.terminated | result.truncated)
    env.close()
    success = success.cpu()
    return Episodes(states=torch.stack(states), running=torch.stack(running), success=success)


def errors(first: Episodes, second: Episodes) -> Tensor:
    """Return the greatest difference of positions in each pair of episodes (E,) [m].

    Steps count while both episodes run.
    """
    apart = (first.states - second.states)[:, :, POSITIONS].abs().amax(2)
    return (apart * (first.running & second.running)).amax(0)


def steps_per_second(env: VectorEnv, seconds: float) -> float:
    """Return the environment steps of all environments per second.

    Seconds on the CPU are those of the process, and those of an accelerator are of the wall clock.
    """
    device = env.spec.device
    env.reset(torch.arange(env.spec.num_envs))
    action = torch.zeros(env.spec.num_envs, 4, device=device)
    active = torch.ones(env.spec.num_envs, dtype=torch.bool, device=device)
    env.step(action, active)  # compiles
    wait_for(device)
    clock = clock_of(device)
    steps, start = 0, clock()
    while clock() - start < seconds:
        for _ in range(STEPS_AT_ONCE):
            env.step(action, active)
        wait_for(device)
        steps += STEPS_AT_ONCE
    return steps * env.spec.num_envs / (clock() - start)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--num-envs", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    warp = TabletopOptions(backend="warp", device=arguments.device)
    torch.set_num_threads(1)
    number = arguments.episodes
    print("task, pair: largest, 90 %, median error [m]; successes of each; steps that differ")
    for task in TASKS:
        c = play(make(task, number, C))
        others = {
            "warp": play(make(task, number, warp)),
            f"c, actions with noise {NOISE:g}": play(make(task, number, C), NOISE),
        }
        for name, other in others.items():
            error = errors(c, other)
            figures = [error.max(), error.quantile(0.9), error.median()]
            lengths = (c.running.sum(0) != other.running.sum(0)).sum()
            print(
                f"{task}, c and {name}:",
                ", ".join(f"{float(figure):.1e}" for figure in figures),
                f"; {int(c.success.sum())} and {int(other.success.sum())} of {number}",
                f"; {int(lengths)}",
                flush=True,
            )
    print(f"E: steps per second, c on one thread and warp on {arguments.device}, PickCube")
    for num_envs in arguments.num_envs:
        speeds = [
            steps_per_second(make("PickCube", num_envs, options, 10**6), arguments.seconds)
            for options in (C, warp)
        ]
        print(f"{num_envs}: " + ", ".join(f"{speed:.0f}" for speed in speeds), flush=True)


if __name__ == "__main__":
    main()
