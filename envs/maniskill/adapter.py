"""ManiSkill's tasks: `maniskill/<task>`, on a GPU as one batch, on the CPU in worker processes.

ManiSkill steps several environments at once only on a GPU. On the CPU each environment is a
simulation of its own, and `WorkerEnv` spreads them over processes.

Without cameras the state is ManiSkill's full state. With cameras it is what ManiSkill gives beside
pictures: the robot's joints, and the task's extras without the poses of objects. An episode ends on
success, or on failure where the task knows one.

Differs from ManiSkill's defaults on the CPU: bodies at rest never fall asleep, because when they do
depends on earlier episodes.

Letters: E envs, S state dim, A action dim, C, Y, X image channels and pixels.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal

import gymnasium
import torch

from pitune.envs.maniskill.batch import ManiSkillBatch, simulator_version
from pitune.envs.maniskill.experts import CONTROL_MODE
from pitune.envs.maniskill.sub_env import ManiSkillCopy, ManiSkillWorkers
from pitune.envs.maniskill.without_vulkan import DRIVER_NEEDED, can_render, replace_materials
from pitune.envs.vector_env import VectorEnv

Backend = Literal["auto", "cpu", "cuda"]

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
"""ManiSkill has no instructions in words; tasks that are not here are called by their name."""

UNSEEDED = ("RotateSingleObjectInHand",)
"""Beginnings of the names of tasks whose initial state was seen to depend on earlier episodes."""


def make_maniskill(
    task: str,
    num_envs: int,
    *,
    num_workers: int = 0,
    reward: Literal["sparse", "dense"] = "sparse",
    control_mode: str = CONTROL_MODE,
    max_episode_steps: int | None = None,
    cameras: tuple[str, ...] = (),
    image_size: int = 128,
    backend: Backend = "auto",
    exact_seeds: bool = True,
) -> VectorEnv:
    """Return a batch of one ManiSkill task.

    Args:
        task: ManiSkill's name, e.g. `PickCube-v1`.
        num_envs: E.
        num_workers: Processes to spread them over on the CPU; 0 for this one.
        reward: `sparse` is 1 on success and else 0, `dense` ManiSkill's own, scaled to at most 1.
        control_mode: ManiSkill's name of how actions are meant; what there is depends on the robot.
        max_episode_steps: Time limit; the task's own by default.
        cameras: Cameras whose pictures enter the observation, e.g. `base_camera`.
        image_size: Y = X of their pictures [pixels].
        backend: Where to simulate; `auto` is CUDA where torch sees it.
        exact_seeds: On CUDA, reset one environment after the other; see `ManiSkillBatch`.

    Raises:
        ImportError: ManiSkill is not installed.
        ValueError: there is no such task, reward, control mode, camera or backend.
        RuntimeError: cameras are asked for, and this machine cannot render.
    """
    import_mani_skill(task)
    check_task(task, reward)
    if backend not in ("auto", "cpu", "cuda"):
        raise ValueError(f"{backend=} must be 'auto', 'cpu' or 'cuda'")
    cuda = torch.cuda.is_available()
    if backend == "cuda" and not cuda:
        raise ValueError("backend='cuda' needs a CUDA device, and torch sees none; use 'cpu'")
    if cameras and not can_render():
        raise RuntimeError(f"{cameras=} of maniskill/{task} cannot be shown: {DRIVER_NEEDED}")
    on_cuda = cuda and backend != "cpu"
    make_batch = functools.partial(
        make_maniskill_batch,
        task,
        num_envs if on_cuda else 1,
        reward=reward,
        control_mode=control_mode,
        max_episode_steps=max_episode_steps,
        cameras=tuple(cameras),
        image_size=image_size,
        backend="cuda" if on_cuda else "cpu",
        exact_seeds=exact_seeds,
    )
    if on_cuda:
        return make_batch()
    return ManiSkillWorkers(
        task,
        control_mode,
        factory=functools.partial(make_copy, make_batch),
        id=f"maniskill/{task}",
        num_envs=num_envs,
        num_workers=num_workers,
        max_episode_steps=time_limit(task, max_episode_steps),
        tasks=(instruction(task),),
        simulator=simulator_version(),
        deterministic_reset=not task.startswith(UNSEEDED),
    )


def make_maniskill_batch(
    task: str,
    num_envs: int,
    *,
    reward: Literal["sparse", "dense"] = "sparse",
    control_mode: str = CONTROL_MODE,
    max_episode_steps: int | None = None,
    cameras: tuple[str, ...] = (),
    image_size: int = 128,
    backend: Literal["cpu", "cuda"] = "cuda",
    exact_seeds: bool = True,
) -> ManiSkillBatch:
    """Return environments that are simulated together; on the CPU there can be only one.

    The arguments and the exceptions are those of `make_maniskill`.
    """
    import_mani_skill(task)
    check_task(task, reward)
    limit = time_limit(task, max_episode_steps)
    simulation = build_simulation(
        task,
        num_envs,
        reward=reward,
        control_mode=control_mode,
        cameras=cameras,
        image_size=image_size,
        backend=backend,
    )
    return ManiSkillBatch(
        simulation,
        task=task,
        max_episode_steps=limit,
        instruction=instruction(task),
        cameras=cameras,
        dense_reward=reward == "dense",
        exact_seeds=exact_seeds,
        deterministic_reset=not (
            task.startswith(UNSEEDED) or (num_envs > 1 and rebuilds_for_a_seed(task))
        ),
    )


def make_copy(make_batch: Callable[[], ManiSkillBatch]) -> ManiSkillCopy:
    """Return one environment in numpy; a function of a module, for it must be picklable."""
    return ManiSkillCopy(make_batch())


def build_simulation(
    task: str,
    num_envs: int,
    *,
    reward: Literal["sparse", "dense"],
    control_mode: str,
    cameras: tuple[str, ...],
    image_size: int,
    backend: Literal["cpu", "cuda"],
) -> Any:
    """Return ManiSkill's environment without wrappers. For the arguments see `make_maniskill`.

    Raises:
        FileNotFoundError: the task's files must be downloaded first.
        RuntimeError: the task needs a Vulkan driver.
        ValueError: the task has no such control mode or no pictures.
    """
    drawn = can_render()
    replace_materials()
    modes = registered()[task].cls.SUPPORTED_REWARD_MODES
    # The sparse reward is ours: ManiSkill's also knows -1 for failure.
    sparse = "none" if "none" in modes else "sparse"
    renderer = "gpu" if torch.cuda.is_available() else "cpu"
    asleep = {} if backend == "cuda" else {"sim_config": {"scene_config": {"sleep_threshold": 0.0}}}
    try:
        return gymnasium.make(
            task,
            num_envs=num_envs,
            obs_mode="rgb" if cameras else "state",
            reward_mode="normalized_dense" if reward == "dense" else sparse,
            control_mode=control_mode,
            sim_backend=f"physx_{backend}",
            render_backend=renderer if drawn else "none",
            render_mode="rgb_array" if drawn else None,
            sensor_configs={"width": image_size, "height": image_size},
            **asleep,
        ).unwrapped
    except (EOFError, SystemExit) as error:
        # ManiSkill asks on the terminal whether to download, and nobody answered or said yes.
        raise FileNotFoundError(
            f"maniskill/{task} needs files that are not on this machine; run "
            f"python -m mani_skill.utils.download_asset {task}, or with the robot's name instead"
        ) from error
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"maniskill/{task} cannot be made with {control_mode=} and {cameras=}: {error}"
        ) from error
    except AttributeError as error:
        if drawn:
            raise
        raise RuntimeError(
            f"maniskill/{task} looks at the shapes that it would draw, and {DRIVER_NEEDED}"
        ) from error


def import_mani_skill(task: str) -> None:
    """Import ManiSkill, which registers its tasks.

    Raises:
        ImportError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # SAPIEN brings the Vulkan loader that it warns it cannot find.
            warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
            import mani_skill.envs  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"maniskill/{task} needs ManiSkill, which cannot be imported ({error}); run "
            'pip install "mani-skill>=3.0.1,<4" on Linux with Python < 3.13'
        ) from error


def registered() -> dict[str, Any]:
    """Return what ManiSkill knows of its tasks, by name."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    return REGISTERED_ENVS


def check_task(task: str, reward: str) -> None:
    """Do nothing if ManiSkill has this task with this reward.

    Raises:
        ValueError: it does not.
    """
    if task not in registered():
        near = difflib.get_close_matches(task, registered(), n=3, cutoff=0.3)
        raise ValueError(f"{task=} is not a ManiSkill task; near it are {near}")
    if reward not in ("sparse", "dense"):
        raise ValueError(f"{reward=} must be 'sparse' or 'dense'")
    if (
        reward == "dense"
        and "normalized_dense" not in registered()[task].cls.SUPPORTED_REWARD_MODES
    ):
        raise ValueError(f"{reward=} does not exist for maniskill/{task}; use 'sparse'")


def time_limit(task: str, max_episode_steps: int | None) -> int:
    """Return the time limit that is asked for, or else the task's own.

    Raises:
        ValueError: it leaves no time.
    """
    limit = registered()[task].max_episode_steps if max_episode_steps is None else max_episode_steps
    if limit < 1:
        raise ValueError(f"{max_episode_steps=} must be at least 1")
    return limit


def rebuilds_for_a_seed(task: str) -> bool:
    """Return whether a task draws its objects' shapes too: a batch draws those only once."""
    return "reconfiguration_freq" in inspect.signature(registered()[task].cls.__init__).parameters


def instruction(task: str) -> str:
    """Return a task in words."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"-v\d+$", "", task)).lower()
    return INSTRUCTIONS.get(task, words)
