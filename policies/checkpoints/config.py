"""Load options: settings that a checkpoint's format lacks, and settings to change."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pitune.policies.network.lora import LoRAConfig
from pitune.policies.policy import FlowPolicy, SamplerConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.policies.preprocessing.prompt import Encoder


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """Settings that another package's checkpoint does not hold. Our own holds all of them.

    Example:
        >>> LoadConfig(pipeline="pi05_libero", execution_horizon=5).flow_steps is None
        True
    """

    pipeline: str | None = None
    """Name of the openpi config that trained the checkpoint. For openpi's checkpoints."""
    tokenizer: Path | None = None
    """Sentencepiece model or folder with tokenizer.json, if the checkpoint has none."""
    norm_stats: Path | None = None
    """openpi's norm_stats.json, instead of the checkpoint's. `pitune.experiments.norm_stats`
    computes one."""
    unnormalized: bool = False
    """Whether to run a checkpoint without norm stats, scaling neither states nor actions."""
    cameras: dict[str, str] = field(default_factory=dict)
    """The environment's camera for each camera of the network. The checkpoint's own names by
    default."""
    action_horizon: int | None = None
    """H, instead of the pipeline's. It is free, because no weight depends on it."""
    execution_horizon: int | None = None
    """h, instead of the checkpoint's."""
    flow_steps: int | None = None
    """K, instead of the checkpoint's."""
    state_padding: int | None = None
    """Width of the state in the prompt of lerobot's π0.5: 32 for checkpoints of version 0.4, 0 for
    later ones."""
    extensions: tuple[str, ...] = ()
    """Registered extensions to add to the network, with their initial values."""


class PolicyInfo(NamedTuple):
    """A policy's facts that no computation reads: origin, tokenizer and low-rank updates.

    Example:
        >>> PolicyInfo(origin={"format": "openpi"}).tokenizer is None
        True
    """

    origin: dict[str, Any]
    """Contents of the checkpoint's own format that writing it again needs."""
    tokenizer: Encoder | None = None
    """Tokenizer of a policy that reads a prompt."""
    lora: LoRAConfig | None = None
    """The low-rank updates in the network."""


def info_of(policy: FlowPolicy) -> PolicyInfo:
    """Return a policy's origin, tokenizer and low-rank updates."""
    return PolicyInfo(policy.origin, policy.tokenizer, policy.lora)


def with_info(policy: FlowPolicy, info: PolicyInfo) -> FlowPolicy:
    """Return the policy with another origin, tokenizer and low-rank updates."""
    policy.origin, policy.tokenizer, policy.lora = info
    return policy


def with_settings(policy: FlowPolicy, config: LoadConfig) -> FlowPolicy:
    """Return the policy with the caller's cameras and sampler settings.

    Raises:
        ValueError: a camera is not one of the network's, or the policy is steered.
    """
    changes = {
        name: value
        for name in ("execution_horizon", "flow_steps")
        if (value := getattr(config, name)) is not None
    }
    preprocessor = policy.preprocessor.config
    if not changes and not config.cameras:
        return policy
    if config.cameras:
        preprocessor = _rewired(preprocessor, config.cameras)
    return with_configs(policy, preprocessor, replace(policy.sampler, **changes))


def with_configs(
    policy: FlowPolicy, preprocessor: PreprocessorConfig, sampler: SamplerConfig
) -> FlowPolicy:
    """Return a policy with other settings around the same network.

    Raises:
        ValueError: the policy is steered. Its noise actor learned with the settings that it has.
    """
    _check_not_steered(policy)
    return with_info(FlowPolicy(policy.network, preprocessor, sampler), info_of(policy))


def with_extensions(policy: FlowPolicy, names: tuple[str, ...]) -> FlowPolicy:
    """Return the policy with registered extensions added to its network.

    Raises:
        ValueError: a name is not registered, the network has the extension already, or the policy
            is steered.
    """
    if names:
        _check_not_steered(policy)
    for name in names:
        policy.network.add_extension(name)
    return policy


def warn_of_raised_scales(policy: FlowPolicy, folder: Path) -> None:
    """Warn if norm stats hardly vary in a dimension, so that their scale was raised."""
    floored = policy.preprocessor.floored()
    if any(floored.values()):
        warnings.warn(
            f"norm stats of {folder} hardly vary in dimensions {floored}; their scale is raised to "
            f"{policy.preprocessor.config.min_scale}",
            stacklevel=2,
        )


def _check_not_steered(policy: FlowPolicy) -> None:
    if hasattr(policy, "steering"):
        raise ValueError(
            "this checkpoint is steered, and its noise actor fits only the settings that it was "
            "trained with; load it without changes, or change the checkpoint it was made from"
        )


def _rewired(config: PreprocessorConfig, cameras: dict[str, str]) -> PreprocessorConfig:
    """Return the config with other cameras of the environment. Unnamed ones become missing."""
    pictures = config.pictures
    known = () if pictures is None else (*pictures.cameras, *pictures.missing)
    unknown = sorted(set(cameras) - set(known))
    if pictures is None or unknown:
        raise ValueError(
            f"cameras={cameras} names {unknown}, but the network's cameras are {list(known)}; "
            "name some of them"
        )
    kept = {name: cameras[name] for name in known if name in cameras}
    missing = tuple(name for name in known if name not in cameras)
    return replace(config, pictures=replace(pictures, cameras=kept, missing=missing))
