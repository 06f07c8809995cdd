"""Checks of the settings of `pitune pretrain`, before anything is played or written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pitune import envs, policies
from pitune.policies.network.options.config import NetworkOptions
from pitune.rl.cloning.config import LanguageLossConfig, StatusLossConfig
from pitune.rl.cloning.losses import check_status_data


class CloneSettings(Protocol):
    """The settings that are checked, of `PretrainConfig`.

    Example:
        >>> check_settings(PretrainConfig(num_demonstrations=2))  # doctest: +SKIP
    """

    @property
    def env(self) -> envs.EnvConfig: ...
    @property
    def record(self) -> Path | None: ...
    @property
    def dataset(self) -> Path | None: ...
    @property
    def sampler(self) -> policies.SamplerConfig: ...
    @property
    def action_horizon(self) -> int: ...
    @property
    def real_time_delay(self) -> int: ...
    @property
    def picture_shift(self) -> int: ...
    @property
    def condition_dropout(self) -> float: ...
    @property
    def words(self) -> bool: ...
    @property
    def has_vlm(self) -> bool: ...
    @property
    def vlm(self) -> policies.SmallVLMConfig: ...
    @property
    def network_options(self) -> NetworkOptions: ...
    @property
    def language(self) -> LanguageLossConfig: ...
    @property
    def status(self) -> StatusLossConfig: ...


def check_settings(config: CloneSettings) -> None:
    """Check that the settings of a clone fit each other.

    Raises:
        ValueError: they contradict each other, or a loss lacks what it needs.
    """
    if config.sampler.execution_horizon > config.action_horizon:
        raise ValueError(
            f"sampler.execution_horizon={config.sampler.execution_horizon} must be at most "
            f"action_horizon={config.action_horizon}: only predicted actions can be executed"
        )
    if config.real_time_delay >= config.action_horizon:
        raise ValueError(
            f"real_time_delay={config.real_time_delay} must be below "
            f"action_horizon={config.action_horizon}: the rest of a chunk is learned"
        )
    if config.picture_shift and not config.env.cameras:
        raise ValueError(
            f"picture_shift={config.picture_shift} has no use without pictures; name some "
            "cameras (--env.cameras), or leave it out"
        )
    if config.vlm != policies.SmallVLMConfig() and not config.has_vlm:
        raise ValueError(
            f"vlm={config.vlm} has no use without pictures and words; name some cameras "
            "(--env.cameras), add --words, or leave the sizes out"
        )
    check_record(config.record, config.dataset)
    if config.env.cameras:
        config.vlm.vision(config.env.image_size)  # sizes that do not fit are rejected here
    check_losses(config)


def check_record(record: Path | None, dataset: Path | None) -> None:
    """Reject recording without an expert.

    Raises:
        ValueError: both are given.
    """
    if record is not None and dataset is not None:
        raise ValueError(
            f"record={record} stores the demonstrations of the expert, but dataset={dataset} takes "
            "its place; leave one of them out"
        )


def check_losses(config: CloneSettings) -> None:
    """Reject losses and dropped conditions that the network or the data cannot have.

    Raises:
        ValueError: names the setting.
    """
    language, status, options = config.language, config.status, config.network_options
    # losses of the language head
    for name, weight in (("fast", language.fast_weight), ("text", language.text_weight)):
        if weight and not options.language_head.is_on:
            raise ValueError(
                f"language.{name}_weight={weight} needs a language head; add "
                "network_options.language_head.enabled=True, or leave the weight at 0"
            )
    if language.fast_weight and not config.vlm.fast_tokens:
        raise ValueError(
            f"language.fast_weight={language.fast_weight} needs FAST tokens, and vlm.fast_tokens "
            "is 0; set it, for example to 256, or leave the weight at 0"
        )
    # dropped conditions
    if config.condition_dropout and not options.conditioning.kinds:
        raise ValueError(
            f"condition_dropout={config.condition_dropout} drops conditions, and the network has "
            "none; add some (network_options.conditioning), or leave it at 0"
        )
    # loss of the status
    if not status.weight:
        return
    if not options.status.is_on:
        raise ValueError(
            f"status.weight={status.weight} needs a network with the status head; add "
            "network_options.status.enabled=True, or leave the weight at 0"
        )
    check_status_data(status, config.dataset, "dataset")
    if status.invalid_share and not config.words:
        raise ValueError(
            f"status.invalid_share={status.invalid_share} gives rows the words of another task, "
            "and the policy reads none; add --words, or set status.invalid_share=0"
        )


def check_status_tasks(status: StatusLossConfig, tasks: Sequence[str]) -> None:
    """Reject a status that learns from the words of other tasks, where there are none.

    Args:
        status: Loss of the status.
        tasks: Instructions of the environment.

    Raises:
        ValueError: all tasks have the same words.
    """
    if status.weight and status.invalid_share and len(set(tasks)) < 2:
        raise ValueError(
            f"status.invalid_share={status.invalid_share} gives rows the words of another task, "
            f"but the tasks are {list(tasks)}; set status.invalid_share=0, or take several tasks"
        )
