"""Load options: settings that a checkpoint's format lacks, and settings to change."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pitune.policies.policy import FlowPolicy, SamplerConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig


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
    lerobot_version: Literal["0.3", "0.4", "0.5"] | None = None
    """lerobot that trained the checkpoint ("0.5" also for later ones), where its files do not
    determine it. 0.3 and 0.4 put other bars beside pictures that are not square."""
    extensions: tuple[str, ...] = ()
    """Registered extensions to add to the network, with their initial values."""


def with_settings(policy: FlowPolicy, config: LoadConfig) -> FlowPolicy:
    """Return the policy with the caller's cameras and sampler settings.

    Raises:
        ValueError: a camera is not one of the network's, or the policy is steered.
    """
    # sampler settings that the caller has set
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
    return FlowPolicy(policy.network, preprocessor, sampler, info=policy.info)


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
    if policy.noise_source is not None:
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

    # known cameras in the network's order, the unnamed ones as missing
    kept = {name: cameras[name] for name in known if name in cameras}
    missing = tuple(name for name in known if name not in cameras)
    return replace(config, pictures=replace(pictures, cameras=kept, missing=missing))
