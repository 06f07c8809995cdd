"""Load options: settings that a checkpoint's format lacks, and settings to change."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pitune.policies.by_tokens import fast_vocabulary
from pitune.policies.fast.tokenizer import FastTokenizer
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.config import NetworkOptions
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import Decoder, SamplerConfig
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig
from pitune.ranges import NonNegativeInt, PositiveInt, Settings

SMALL_SCALE = 1e-4
"""Scales below this are warned of. A robot's movements are far above it [robot units]."""

LerobotVersion = Literal["0.3", "0.4", "0.5"]


@dataclass(frozen=True, kw_only=True)
class LoadConfig(Settings):
    """Settings that another package's checkpoint does not hold. Our own holds all of them.

    Example:
        >>> LoadConfig(pipeline="pi05_libero", execution_horizon=5).flow_steps is None
        True
    """

    pipeline: str | None = None
    """Name of the openpi config that trained the checkpoint, or a .json or .yaml file with the
    settings of your own robot. For openpi's checkpoints."""
    tokenizer: Path | None = None
    """Sentencepiece model or folder with tokenizer.json, if the checkpoint has none."""
    norm_stats: Path | None = None
    """openpi's norm_stats.json, instead of the checkpoint's. `pitune.experiments.norm_stats`
    computes one."""
    asset: str | None = None
    """Name of the robot whose norm stats to take, if openpi's checkpoint holds those of several."""
    unnormalized: bool = False
    """Whether to scale neither states nor actions, whether the checkpoint has norm stats or not."""
    cameras: dict[str, str] = field(default_factory=dict)
    """The environment's camera for each camera of the network. The checkpoint's own names by
    default."""
    action_horizon: PositiveInt | None = None
    """H, instead of the pipeline's. It is free, because no weight depends on it."""
    execution_horizon: PositiveInt | None = None
    """h, instead of the checkpoint's."""
    flow_steps: PositiveInt | None = None
    """K, instead of the checkpoint's."""
    state_padding: NonNegativeInt | None = None
    """Width of the state in the prompt of lerobot's π0.5: 32 for checkpoints of version 0.4, 0 for
    later ones."""
    lerobot_version: LerobotVersion | None = None
    """lerobot that trained the checkpoint ("0.5" also for later ones), where its files do not
    determine it. 0.3 and 0.4 put other bars beside pictures that are not square."""
    extensions: tuple[str, ...] = ()
    """Registered extensions to add to the network, with their initial values."""
    options: NetworkOptions = field(default_factory=NetworkOptions)
    """Options of the network to add, with which it computes the same numbers until trained."""
    fast_tokenizer: Path | None = None
    """Folder of a FAST tokenizer, such as a copy of the hub's physical-intelligence/fast, if the
    checkpoint has none."""
    decoder: Decoder | None = None
    """How the policy makes a chunk, by its flow or by its FAST tokens, instead of the checkpoint's.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        stats = [name for name in ("norm_stats", "asset") if getattr(self, name) is not None]
        stats += ["unnormalized"] if self.unnormalized else []
        if len(stats) > 1:
            raise ValueError(f"{' and '.join(stats)} contradict each other; set one of them")


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


def with_options(policy: FlowPolicy, options: NetworkOptions) -> FlowPolicy:
    """Return the policy with options added to its network.

    Raises:
        ValueError: an option would change the policy's numbers, is on already, does not fit the
            network, or the policy is steered.
    """
    if not options.names:
        return policy
    _check_not_steered(policy)
    network = network_with_options(policy.network, options, policy.info.lora)
    return policy.replace(network=network)


def with_fast(policy: FlowPolicy, config: LoadConfig) -> FlowPolicy:
    """Return the policy with the caller's FAST tokenizer and decoder, if there are any.

    Raises:
        FileNotFoundError: there is no FAST tokenizer at the given path.
        ValueError: the policy has one already, it does not fit, or the policy cannot decode.
    """
    if config.fast_tokenizer is not None:
        _check_not_steered(policy)
        if policy.info.fast is not None:
            raise ValueError(
                f"fast_tokenizer={config.fast_tokenizer} was passed, but the checkpoint has its "
                "own, with which its language head was trained; leave it out"
            )
        fast = FastTokenizer.load(config.fast_tokenizer)
        policy = policy.replace(info=replace(policy.info, fast=fast))
    if config.decoder is not None and config.decoder != policy.sampler.decoder:
        _check_not_steered(policy)
        policy = policy.replace(sampler=replace(policy.sampler, decoder=config.decoder))
    if config.fast_tokenizer is not None or config.decoder == "fast":
        fast_vocabulary(policy)  # raises if something is missing
    return policy


def warn_of_small_scales(policy: FlowPolicy, folder: Path) -> None:
    """Warn if norm stats hardly vary in a dimension, which makes inputs of small movements."""
    flat = policy.preprocessor.flat(SMALL_SCALE)
    if policy.preprocessor.config.normalization != "none" and any(flat.values()):
        warnings.warn(
            f"norm stats of {folder} vary by less than {SMALL_SCALE} in dimensions {flat}; their "
            "scales are those of the reference, so that a small movement there is a large input. "
            "Recompute the stats with a least scale if your robot moves there (pitune norm-stats "
            "--min-scale)",
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
    if config.pictures is None:
        raise ValueError(f"cameras={cameras} were passed, but this policy has no cameras")
    return replace(config, pictures=config.pictures.rewired(cameras))
