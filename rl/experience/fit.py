"""Checks that a policy and an algorithm fit an environment, before anything is played."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from pitune.envs import EnvSpec
from pitune.policies import FlowPolicy
from pitune.policies.preprocessing.images import nearest
from pitune.policies.preprocessing.model_input import task_numbers, with_words
from pitune.rl.algorithm import Algorithm

logger = logging.getLogger(__name__)


def check_fit(policy: FlowPolicy, spec: EnvSpec) -> None:
    """Reject a policy that does not fit an environment.

    Raises:
        ValueError: their state or action dims differ, or the environment lacks cameras or the
            instructions of the policy, or has tasks that it was not conditioned on.
    """
    # widths of state and action
    pairs = (
        ("state", policy.preprocessor.state_dim, spec.state_dim),
        ("action", policy.preprocessor.action_dim, spec.action_dim),
    )
    for name, wanted, given in pairs:
        if wanted != given:
            raise ValueError(
                f"the checkpoint's {name} has {wanted} dimensions, {spec.id} has {given}; it was "
                "trained for another robot or task, pass its environment with --env.id"
            )

    # cameras
    cameras = [key.removeprefix("image/") for key in policy.obs_keys if key.startswith("image/")]
    missing = sorted(set(cameras) - set(spec.cameras))
    if missing:
        raise ValueError(
            f"the checkpoint needs cameras {missing}, {spec.id} was made with "
            f"{list(spec.cameras)}{nearest(missing, spec.cameras)}; {_camera_advice(spec.id)}"
        )

    # tasks and instructions
    if policy.condition_tasks:
        task_numbers(policy.condition_tasks, spec.tasks)
    prompt = policy.preprocessor.config.prompt
    if prompt is not None:
        with_words(spec.tasks, prompt.default)
    elif len(spec.tasks) > 1 and not policy.condition_tasks:
        _warn_of_tasks(spec.id, len(spec.tasks))


def _camera_advice(env_id: str) -> str:
    """Return the way to get further cameras in an environment."""
    prefix = env_id.partition("/")[0]
    if prefix == "gym":
        return "let the environment return them as image/<camera> in a Dict observation"
    return "pass --env.cameras"


@cache
def _warn_of_tasks(env_id: str, num_tasks: int) -> None:
    """Warn of a policy without words, once for each environment."""
    logger.warning(
        "%s has %d tasks, but the policy reads no instruction, so it and its critics cannot "
        "distinguish tasks whose observations are alike; use a policy with words "
        "(pitune pretrain --words)",
        env_id,
        num_tasks,
    )


def check_needs(algorithm: Algorithm[Any], spec: EnvSpec) -> None:
    """Reject an environment that does not meet an algorithm's `Needs`.

    Raises:
        ValueError: a need is not met.
    """
    name, needs = type(algorithm).__name__, algorithm.needs
    if needs.success_signal and not spec.success_signal:
        raise ValueError(
            f"{name} needs a success signal, {spec.id} has none; report info['success'], one "
            "boolean at each step, or use an algorithm that learns from the reward (ppo, fpo)"
        )
    check_rewards(algorithm, spec)
    check_rate(algorithm, spec)
    if spec.num_envs % needs.num_shares:
        raise ValueError(
            f"{name} splits the environments into {needs.num_shares} equal shares; "
            f"num_envs={spec.num_envs} must be a multiple of that"
        )
    if needs.group_size > 1 and not spec.deterministic_reset:
        raise ValueError(
            f"{name} needs groups of {needs.group_size} equal starts, but a seed does not fix the "
            f"start of {spec.id}"
        )


def check_rewards(algorithm: Algorithm[Any], spec: EnvSpec) -> None:
    """Reject demonstrations whose rewards are not those of the environment, where they are mixed.

    Raises:
        ValueError: the rewards differ.
    """
    recorded = algorithm.demonstrated_reward
    if recorded is not None and spec.reward and recorded != spec.reward:
        raise ValueError(
            f"{type(algorithm).__name__} learns from the rewards of demonstrations beside those of "
            f"{spec.id}, but they differ: {recorded!r} in the file, {spec.reward!r} here. Collect "
            "the demonstrations again in this environment (pitune pretrain with the same --env "
            "options), or set offline_share to 0"
        )


def check_rate(algorithm: Algorithm[Any], spec: EnvSpec) -> None:
    """Reject a dataset whose frame rate is not the control rate of the environment.

    Raises:
        ValueError: the rates differ.
    """
    fps = algorithm.demonstrated_fps
    if fps is not None and abs(fps - spec.control_hz) > 1e-3 * spec.control_hz:
        raise ValueError(
            f"the dataset has {fps:g} frames per second, {spec.id} has control_hz="
            f"{spec.control_hz:g}, so a cloned action would take another time; record the dataset "
            "at this rate, or accept the difference with data.any_rate"
        )
