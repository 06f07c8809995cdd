"""ManiSkill's own environment: its registry, its arguments and its errors."""

from __future__ import annotations

import difflib
import inspect
import warnings
from typing import Any, Literal

import gymnasium
import torch

from pitune.envs.config import EnvConfig
from pitune.envs.maniskill.registration import ManiSkillOptions
from pitune.envs.maniskill.without_vulkan import can_render, replace_materials
from pitune.envs.rendering.vulkan import DRIVER_NEEDED


def build_simulation(
    task: str, num_envs: int, config: EnvConfig, device: Literal["cpu", "cuda"]
) -> Any:
    """Return ManiSkill's environment without wrappers.

    Args:
        task: ManiSkill's name, e.g. `PickCube-v1`.
        num_envs: Environments that are simulated together (1 on the CPU).
        config: Its options are `ManiSkillOptions`.
        device: Device of the physics.

    Raises:
        FileNotFoundError: the task's files must be downloaded first.
        RuntimeError: the task needs a Vulkan driver.
        ValueError: the task has no such control mode or no pictures.
    """
    options = config.typed_options(ManiSkillOptions)
    has_driver = can_render()
    replace_materials()
    modes = registered_tasks()[task].cls.SUPPORTED_REWARD_MODES
    # The sparse reward is computed in ManiSkillBatch: ManiSkill's is -1 on failure.
    sparse = "none" if "none" in modes else "sparse"
    renderer = f"cuda:{options.gpu}" if torch.cuda.is_available() else "cpu"
    arguments: dict[str, Any] = {
        "num_envs": num_envs,
        "obs_mode": resolve_obs_mode(config),
        "reward_mode": "normalized_dense" if config.reward == "dense" else sparse,
        "control_mode": options.control_mode,
        "sim_backend": "physx_cpu" if device == "cpu" else f"physx_cuda:{options.gpu}",
        "render_backend": renderer if has_driver else "none",
        "render_mode": "rgb_array" if has_driver else None,
        "sensor_configs": {"width": config.image_size, "height": config.image_size},
    }
    settings: dict[str, Any] = {}
    if device == "cpu":
        settings["scene_config"] = {"sleep_threshold": 0.0}
    if config.control_hz is not None:
        settings["control_freq"] = _whole_rate(config)
    if settings:
        arguments["sim_config"] = settings

    # errors of ManiSkill, with a remedy
    try:
        return gymnasium.make(task, **arguments).unwrapped
    except (EOFError, SystemExit) as error:
        # ManiSkill asks on the terminal whether to download, and the answer was missing or no.
        raise FileNotFoundError(
            f"maniskill/{task} needs files that are not on this machine; run "
            f"python -m mani_skill.utils.download_asset {task}, or with the robot's name instead"
        ) from error
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"maniskill/{task} cannot be made with control_mode={options.control_mode!r}, "
            f"cameras={config.cameras} and control_hz={config.control_hz}: {error}"
        ) from error
    except AttributeError as error:
        if has_driver:
            raise
        raise RuntimeError(
            f"maniskill/{task} reads the shapes that it would draw, and {DRIVER_NEEDED}"
        ) from error


def _whole_rate(config: EnvConfig) -> int:
    """Return the control steps per second, of which ManiSkill takes whole numbers.

    Raises:
        ValueError: `control_hz` is not one.
    """
    rate = config.control_hz or 0.0
    if rate != int(rate):
        raise ValueError(f"control_hz={rate} of {config.id} must be a whole number")
    return int(rate)


def resolve_obs_mode(config: EnvConfig) -> str:
    """Return ManiSkill's observation mode.

    Raises:
        ValueError: the mode is unknown, or does not fit the cameras.
    """
    mode = config.typed_options(ManiSkillOptions).obs_mode
    if mode not in ("auto", "state", "rgb", "rgb+state"):
        raise ValueError(f"obs_mode={mode!r} must be 'auto', 'state', 'rgb' or 'rgb+state'")
    if mode == "auto":
        return "rgb" if config.cameras else "state"
    if mode == "state" and config.cameras:
        raise ValueError(
            f"obs_mode='state' of {config.id} has no pictures, but cameras={config.cameras}; "
            "use 'rgb' or 'rgb+state', or no cameras"
        )
    if mode != "state" and not config.cameras:
        raise ValueError(
            f"obs_mode={mode!r} of {config.id} needs cameras, and there are none; "
            "use 'state', or name cameras, e.g. 'base_camera'"
        )
    return mode


def import_mani_skill(task: str) -> None:
    """Import ManiSkill, which registers its tasks.

    Raises:
        ImportError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            # SAPIEN contains the Vulkan loader, and warns that the system has none.
            warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
            import mani_skill.envs  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"maniskill/{task} needs ManiSkill, which cannot be imported ({error}); run "
            'pip install "mani-skill>=3.0.1,<4" on Linux with Python < 3.13'
        ) from error


def registered_tasks() -> dict[str, Any]:
    """Return ManiSkill's registry: task -> its spec."""
    from mani_skill.utils.registration import REGISTERED_ENVS

    registry: dict[str, Any] = REGISTERED_ENVS
    return registry


def check_task(task: str, reward: str) -> None:
    """Check that ManiSkill has the task and the reward.

    Raises:
        ValueError: it does not.
    """
    if task not in registered_tasks():
        near = difflib.get_close_matches(task, registered_tasks(), n=3, cutoff=0.3)
        raise ValueError(f"{task=} is not a ManiSkill task; near it are {near}")
    if reward not in ("sparse", "dense"):
        raise ValueError(f"{reward=} must be 'sparse' or 'dense'")
    modes = registered_tasks()[task].cls.SUPPORTED_REWARD_MODES
    if reward == "dense" and "normalized_dense" not in modes:
        raise ValueError(f"{reward=} does not exist for maniskill/{task}; use 'sparse'")


def time_limit(task: str, max_episode_steps: int | None) -> int:
    """Return the requested time limit, or the task's own if it is None.

    Raises:
        ValueError: it is below 1.
    """
    own: int = registered_tasks()[task].max_episode_steps
    limit = own if max_episode_steps is None else max_episode_steps
    if limit < 1:
        raise ValueError(f"{max_episode_steps=} must be at least 1")
    return limit


def rebuilds_for_a_seed(task: str) -> bool:
    """Return whether a task draws the shapes of objects too, which a batch draws only once."""
    constructor = registered_tasks()[task].cls.__init__
    return "reconfiguration_freq" in inspect.signature(constructor).parameters
