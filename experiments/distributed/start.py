"""The beginning of a training on several ranks: its checks, its devices and its random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from rich.console import Console

from pitune import rl
from pitune.envs import EnvConfig, ManiSkillOptions
from pitune.experiments.runs.progress import screen
from pitune.experiments.runs.train_config import TrainConfig
from pitune.rl import ranks

Result = TypeVar("Result")
MINIBATCHES = ("minibatch_size", "noise_minibatch_size", "value_minibatch_size")
"""Settings that all ranks share."""


def join(config: TrainConfig) -> None:
    """Join the other ranks, if torchrun started several. Rank 0 alone prints.

    Raises:
        ValueError: a setting does not fit the number of ranks.
    """
    ranks.start(config.device)
    if config.shard:
        check_shard(config)
    if ranks.world() == 1:
        return
    check_settings(config, ranks.world())
    if ranks.rank():
        screen.console = Console(stderr=True, quiet=True)
    else:
        num_envs = ranks.world() * config.env.num_envs
        screen.note(
            f"{ranks.world()} ranks with {config.env.num_envs} environments, {num_envs} in all"
        )


def check_shard(config: TrainConfig) -> None:
    """Reject settings that cannot be combined with sharded weights.

    Raises:
        ValueError: there is one rank, or the algorithm copies or averages the weights.
    """
    if ranks.world() == 1:
        raise ValueError(
            "shard=True splits the weights over several ranks, and there is one; start with "
            "torchrun --nproc-per-node 2, or pass --no-shard"
        )
    if config.compile:
        raise ValueError(
            "shard=True cannot be combined with compile=True, whose functions would hold gathered "
            "weights; pass --no-shard or --no-compile"
        )
    algorithm = config.algorithm
    if isinstance(algorithm, rl.EPOConfig):
        raise ValueError(
            "shard=True cannot be combined with epo, whose members are copies of the policy; "
            "pass --no-shard, or take ppo"
        )
    if isinstance(algorithm, rl.BCConfig) and algorithm.ema_decay != 0:
        raise ValueError(
            f"shard=True cannot be combined with ema_decay={algorithm.ema_decay}, an average of "
            "whole weights; pass --algorithm.ema-decay 0, or --no-shard"
        )


def check_settings(config: TrainConfig, world: int) -> None:
    """Reject settings that cannot be shared by `world` ranks.

    Raises:
        ValueError: a minibatch is not a multiple of the ranks, or ranks would act on their own.
    """
    if config.act_while_learning:
        raise ValueError(
            f"act_while_learning=True cannot be combined with {world} ranks, whose updates wait "
            "for each other; pass --no-act-while-learning, or start without torchrun"
        )
    for name, size in _minibatches(config.algorithm):
        if size % world:
            raise ValueError(
                f"{name}={size} is shared by {world} ranks, so it must be a multiple of that; "
                f"pass --algorithm.{name} {-(-size // world) * world}"
            )


def _minibatches(config: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Yield name and size of all minibatches in a config and its blocks."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name in MINIBATCHES:
            yield f"{path}{entry.name}", value
        elif is_dataclass(value):
            yield from _minibatches(value, f"{path}{entry.name}.")


def rank_env(config: EnvConfig) -> EnvConfig:
    """Return the settings of this rank's environments: a simulator on CUDA takes its device."""
    if not ranks.local_rank() or config.prefix != "maniskill":
        return config
    options = config.typed_options(ManiSkillOptions)
    return replace(config, options=replace(options, gpu=options.gpu + ranks.local_rank()))


def own_random_numbers(seed: int, iteration: int = 0) -> None:
    """Give ranks other than 0 random numbers of their own, after all have made the same networks.

    Args:
        seed: Seed of the run.
        iteration: From which the numbers are used. After the first one, rank 0 gets new ones too.
    """
    if ranks.rank() or iteration:
        torch.manual_seed(seed + (ranks.rank() << 32) + (iteration << 44))


def on_first(function: Callable[[], Result]) -> Result | None:
    """Return the result of a function on rank 0, and None on the others, which wait.

    Raises:
        SystemExit: on the others, if the function failed. Rank 0 raises the error.
    """
    result: Result | None = None
    error: BaseException | None = None
    if not ranks.rank():
        try:
            result = function()
        except BaseException as failure:
            if ranks.world() == 1:
                raise
            error = failure
    # the others learn of a failure here, so that none waits for rank 0
    failed = ranks.of_first(error is not None)
    if error is not None:
        raise error
    if failed:
        raise SystemExit(1)
    return result


def first_alone(function: Callable[[], Result]) -> Result:
    """Return the result of a function, which rank 0 calls before the others do."""
    result = on_first(function)
    return function() if result is None else result
