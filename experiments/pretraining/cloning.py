"""Settings of the first cloning that follow from those of `pitune pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pitune import rl
from pitune.policies import NetworkOptions
from pitune.policies.network.options.tokens.conditioning import with_tasks

if TYPE_CHECKING:
    from pitune.experiments.pretrain import PretrainConfig


def cloning_config(config: PretrainConfig) -> rl.BCConfig:
    """Return the settings of the gradient steps.

    All that depends on the policy by default is that of an untrained one.
    """
    return rl.BCConfig(
        learning_rate=config.learning_rate,
        warmup_steps=0,
        decay_steps=config.gradient_steps,
        final_fraction=0.01,
        weight_decay=1e-4,
        ema_decay=0.0,
        minibatch_size=config.minibatch_size,
        real_time_delay=config.real_time_delay,
        draws_per_chunk=config.draws_per_chunk,
        immiscible_noise=config.immiscible_noise,
        condition_dropout=config.condition_dropout,
        picture_shift=config.picture_shift,
        language=config.language,
        status=config.status,
    )


def options_for(options: NetworkOptions, tasks: Sequence[str], source: str) -> NetworkOptions:
    """Return the options of a network, conditioned on given tasks if they condition on the task.

    Args:
        options: As they were given.
        tasks: Instructions of the environment or the dataset.
        source: Its name, for the error.

    Raises:
        ValueError: there are no tasks to condition on.
    """
    return replace(options, conditioning=with_tasks(options.conditioning, tasks, source))
