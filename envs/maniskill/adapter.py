"""ManiSkill's tasks: `maniskill/<task>`, on a GPU as one batch, on the CPU in worker processes.

ManiSkill steps several environments at once only on a GPU. On the CPU each environment is a
simulation of its own, and `WorkerEnv` spreads them over processes.

Without cameras the state is ManiSkill's full state. With cameras it is by default the part that
ManiSkill returns with pictures: the robot's joints, and the task's extras without the poses of
objects (`ManiSkillOptions.obs_mode`). An episode ends on success, or on failure where the task
detects one.

Differs from ManiSkill's defaults on the CPU: bodies at rest never fall asleep, because the time at
which they do depends on earlier episodes.

Letters: E envs.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from pitune.envs.config import EnvConfig
from pitune.envs.maniskill.batch import ManiSkillBatch, simulator_version
from pitune.envs.maniskill.registration import ManiSkillOptions
from pitune.envs.maniskill.simulation import (
    build_simulation,
    check_task,
    import_mani_skill,
    rebuilds_for_a_seed,
    resolve_obs_mode,
    time_limit,
)
from pitune.envs.maniskill.start_bank import StartBank, StartProcesses
from pitune.envs.maniskill.sub_env import ManiSkillSubEnv, ManiSkillWorkers
from pitune.envs.maniskill.tasks import UNSEEDED, instruction
from pitune.envs.maniskill.without_vulkan import can_render
from pitune.envs.rendering.vulkan import DRIVER_NEEDED
from pitune.envs.vector_env import VectorEnv
from pitune.envs.workers.pool import Timeouts


def make_maniskill(task: str, config: EnvConfig) -> VectorEnv:
    """Return a batch of one ManiSkill task.

    Args:
        task: ManiSkill's name, e.g. `PickCube-v1`.
        config: Its options are `ManiSkillOptions`.

    Raises:
        ImportError: ManiSkill is not installed.
        ValueError: the task, reward, control mode, observation mode, camera or backend is unknown.
        RuntimeError: cameras are requested, and this machine cannot render.
    """
    options = config.typed_options(ManiSkillOptions)
    check_settings(task, config)
    device = choose_device(options)
    # one batch on the GPU, or workers with one environment per simulator
    if device == "cuda":
        return make_maniskill_batch(task, config.num_envs, config, device)
    return ManiSkillWorkers(
        task,
        options.control_mode,
        factory=functools.partial(
            make_sub_env, functools.partial(make_maniskill_batch, task, 1, config, device)
        ),
        id=f"maniskill/{task}",
        num_envs=config.num_envs,
        num_workers=config.num_workers,
        max_episode_steps=time_limit(task, config.max_episode_steps),
        tasks=(instruction(task),),
        simulator=simulator_version(),
        deterministic_reset=not task.startswith(UNSEEDED),
        probe=False,  # its own tests hold what a probe would find out in 10 s
        timeouts=Timeouts.of_config(config),
        max_failures=config.max_failures,
    )


def check_settings(task: str, config: EnvConfig) -> None:
    """Check a task and the settings before a simulator is built.

    Raises:
        ImportError: ManiSkill is not installed.
        ValueError: the task, reward, observation mode or camera is unknown.
        RuntimeError: cameras are requested, and this machine cannot render.
    """
    resolve_obs_mode(config)
    import_mani_skill(task)
    check_task(task, config.reward)
    if config.cameras and not can_render():
        raise RuntimeError(
            f"cameras={config.cameras} of maniskill/{task} cannot be rendered: {DRIVER_NEEDED}"
        )


def make_maniskill_batch(
    task: str, num_envs: int, config: EnvConfig, device: Literal["cpu", "cuda"]
) -> ManiSkillBatch:
    """Return environments that are simulated together.

    Args:
        task: ManiSkill's name, e.g. `PickCube-v1`.
        num_envs: E, which is 1 on the CPU.
        config: All other settings. Its `num_envs` is not used.
        device: Device of the physics.

    Raises:
        ImportError: ManiSkill is not installed.
        ValueError: as in `make_maniskill`.
    """
    import_mani_skill(task)
    check_task(task, config.reward)
    limit = time_limit(task, config.max_episode_steps)
    draws_shapes_once = num_envs > 1 and rebuilds_for_a_seed(task)
    exact_seeds = device == "cpu" or config.typed_options(ManiSkillOptions).exact_seeds
    has_bank = device == "cuda" and exact_seeds and not rebuilds_for_a_seed(task)
    return ManiSkillBatch(
        build_simulation(task, num_envs, config, device),
        task=task,
        max_episode_steps=limit,
        instruction=instruction(task),
        cameras=config.cameras,
        dense_reward=config.reward == "dense",
        exact_seeds=exact_seeds,
        bank=make_bank(task, config) if has_bank else None,
        deterministic_reset=not (task.startswith(UNSEEDED) or draws_shapes_once),
        max_failures=config.max_failures,
    )


def make_bank(task: str, config: EnvConfig) -> StartBank | None:
    """Return a bank of a task's starts, or None and a warning if its starts are no states.

    Args:
        task: ManiSkill's name.
        config: Its `num_workers` processes make the starts.
    """
    options = replace(config.typed_options(ManiSkillOptions), obs_mode="state", backend="cpu")
    alone = replace(config, num_envs=1, cameras=(), options=options)
    num_workers = max(1, config.num_workers)
    processes = StartProcesses(functools.partial(_build_alone, task, alone), num_workers)
    if processes.is_restorable():
        return StartBank(processes.make, processes.close)
    processes.close()
    warnings.warn(
        f"maniskill/{task} resets one environment after the other, because its starts cannot be "
        "restored from states; exact_seeds=False is faster, but equal seeds are then no equal "
        "starts",
        stacklevel=2,
    )
    return None


def _build_alone(task: str, config: EnvConfig) -> Any:
    """Return a simulation of one environment on the CPU."""
    import_mani_skill(task)
    return build_simulation(task, 1, config, "cpu")


def choose_device(options: ManiSkillOptions) -> Literal["cpu", "cuda"]:
    """Return the device of the physics.

    Raises:
        ValueError: the backend is unknown, or torch does not find the CUDA device.
    """
    if options.backend not in ("auto", "cpu", "cuda"):
        raise ValueError(f"backend={options.backend!r} must be 'auto', 'cpu' or 'cuda'")
    has_cuda = torch.cuda.is_available()
    if options.backend == "cuda" and not has_cuda:
        raise ValueError("backend='cuda' needs a CUDA device, and torch finds none; use 'cpu'")
    if options.gpu and options.gpu >= torch.cuda.device_count():
        raise ValueError(
            f"gpu={options.gpu} is not on this machine, where torch finds "
            f"{torch.cuda.device_count()} CUDA devices"
        )
    return "cuda" if has_cuda and options.backend != "cpu" else "cpu"


def make_sub_env(make_batch: Callable[[], ManiSkillBatch]) -> ManiSkillSubEnv:
    """Return one environment in numpy. The function is at module level to be picklable."""
    return ManiSkillSubEnv(make_batch())
