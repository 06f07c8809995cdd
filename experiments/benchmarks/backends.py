"""Compare the tabletop's physics engines: `python -m pitune.experiments.benchmarks.backends`.

It plays the expert in MuJoCo's C engine and in MuJoCo Warp on the CPU from equal starts, and times
both. As a control it plays the C engine a second time, with the first action off by 1e-6: contacts
amplify a difference in either engine.

Letters: E envs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pitune.envs.tabletop.env import Tabletop
from pitune.envs.tabletop.registration import TASKS
from pitune.envs.tabletop.warp.env import WarpTabletop
from pitune.envs.vector_env import VectorEnv

POSITIONS = [0, 1, 2, 8, 9, 10]
"""Positions of the tool and of cube 0 in the state."""


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """The expert's episodes in one engine, of up to T steps.

    Example:
        >>> torch.equal(play(Tabletop("PickCube", 2)).success, torch.tensor([True, True]))
        True
    """

    states: Tensor
    """Observed states (T, E, s)."""
    running: Tensor
    """Whether each episode was running before each step (T, E) bool."""
    success: Tensor
    """(E,) bool."""


def play(env: VectorEnv, push: float = 0.0) -> Episodes:
    """Play the expert in all environments, with seeds 0, 1, ...

    Args:
        env: The environments.
        push: Added to the first action.
    """
    env.reset(torch.arange(env.spec.num_envs))
    expert, active = env.expert(), torch.ones(env.spec.num_envs, dtype=torch.bool)
    success, states, running = ~active, [], []
    for step in range(env.spec.max_episode_steps):
        result = env.step(expert.act() + push * (step == 0), active)
        states.append(result.obs["state"])
        running.append(active)
        success = success | result.info["success"]
        active = active & ~(result.terminated | result.truncated)
    env.close()
    return Episodes(states=torch.stack(states), running=torch.stack(running), success=success)


def errors(first: Episodes, second: Episodes) -> Tensor:
    """Return the greatest difference of positions in each pair of episodes (E,) [m].

    Steps count while both episodes run.
    """
    apart = (first.states - second.states)[:, :, POSITIONS].abs().amax(2)
    return (apart * (first.running & second.running)).amax(0)


def steps_per_second(env: VectorEnv, seconds: float) -> float:
    """Return the environment steps of all environments per second of process time."""
    env.reset(torch.arange(env.spec.num_envs))
    action = torch.zeros(env.spec.num_envs, 4)
    active = torch.ones(env.spec.num_envs, dtype=torch.bool)
    env.step(action, active)  # compiles
    steps, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        env.step(action, active)
        steps += 1
    return steps * env.spec.num_envs / (time.process_time() - start)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=128)
    parser.add_argument("--num-envs", type=int, nargs="*", default=[1, 64, 256])
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    number, cpu = arguments.episodes, torch.device("cpu")
    print("task, pair: largest, 90 %, median error [m]; successes of each; steps that differ")
    for task in TASKS:
        c = play(Tabletop(task, number, num_threads=1))
        others = {
            "warp": play(WarpTabletop(task, number, device=cpu)),
            "c, first action off by 1e-6": play(Tabletop(task, number, num_threads=1), 1e-6),
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
    print("E: steps per second of process time, c and warp, PickCube")
    for num_envs in arguments.num_envs:
        envs = (
            Tabletop("PickCube", num_envs, num_threads=1, max_episode_steps=10**6),
            WarpTabletop("PickCube", num_envs, device=cpu, max_episode_steps=10**6),
        )
        speeds = [steps_per_second(env, arguments.seconds) for env in envs]
        print(f"{num_envs}: " + ", ".join(f"{speed:.0f}" for speed in speeds), flush=True)


if __name__ == "__main__":
    main()
