"""Policies from lerobot's checkpoint folders, see `lerobot_read` and `lerobot_write`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pitune.policies.checkpoints import lerobot_read
from pitune.policies.checkpoints.config import (
    LoadConfig,
    warn_of_small_scales,
    with_settings,
)
from pitune.policies.checkpoints.external import (
    build_network,
    check_normalized,
    heads_of,
    read_arch,
)
from pitune.policies.checkpoints.files import read_weight_files
from pitune.policies.checkpoints.pipelines import Pipeline
from pitune.policies.checkpoints.weights import rename_weights
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy, PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.norm_stats_file import read_norm_stats


def is_lerobot(folder: Path) -> bool:
    """Return whether a folder has lerobot's `config.json`, which names the type of the policy."""
    config = folder / "config.json"
    return config.is_file() and '"type"' in config.read_text()


def read_network(folder: Path, action_horizon: int) -> Pi0:
    """Return the network of a folder."""
    weights, _ = lerobot_read.split_legacy_stats(read_weight_files(folder))
    return build_network(
        rename_weights(weights), heads_of(read_arch(folder)), action_horizon, folder
    )


def read(folder: Path, config: LoadConfig, pipeline: Pipeline | None = None) -> FlowPolicy:
    """Read a checkpoint folder of lerobot.

    Raises:
        ValueError: norm stats are missing, files disagree, or the pipeline is not supported.
    """
    # network, in the family that both files must name
    files = lerobot_read.LerobotFolder.read(folder)
    horizon = config.action_horizon or int(files.config.get("chunk_size", 50))
    network = read_network(folder, horizon)
    family = network.config.family
    if files.config.get("type") != family:
        raise ValueError(
            f"{folder / 'config.json'} has type={files.config.get('type')!r}, but the weights are "
            f"{family}'s; only pi0 and pi05 are supported, and both files must agree"
        )

    # preprocessing, where the caller's norm stats replace those of the folder
    _, legacy = lerobot_read.split_legacy_stats(read_weight_files(folder))
    stats = lerobot_read.read_norm_stats(folder, files, legacy)
    if config.norm_stats is not None:
        stats = read_norm_stats(config.norm_stats)
    stats = None if config.unnormalized else stats
    check_normalized(folder, stats is not None, config)
    preprocessor = lerobot_read.preprocessor_config(files, stats, family, config.state_padding)

    # sampler
    sampler = SamplerConfig(
        flow_steps=int(files.config.get("num_inference_steps", 10)),
        execution_horizon=min(int(files.config.get("n_action_steps", horizon)), horizon),
    )

    # policy
    policy = FlowPolicy(network, preprocessor, sampler)
    warn_of_small_scales(policy, folder)
    origin = {"format": "lerobot", **asdict(files)}
    return with_settings(policy.replace(info=PolicyInfo(origin=origin)), config)
