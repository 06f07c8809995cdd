"""Policies from lerobot's checkpoint folders, see `lerobot_read` and `lerobot_write`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

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
from pitune.policies.checkpoints.layouts.adapter_files import ADAPTER_CONFIG, adapter_files
from pitune.policies.checkpoints.layouts.weight_files import read_weight_files
from pitune.policies.checkpoints.lerobot_files import settings
from pitune.policies.checkpoints.lerobot_files.legacy import split_legacy_stats
from pitune.policies.checkpoints.lerobot_files.steps import PREPROCESSOR, check_steps
from pitune.policies.checkpoints.pipelines import Pipeline
from pitune.policies.checkpoints.weights import rename_weights
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.norm_stats_file import read_norm_stats
from pitune.policies.preprocessing.tokenizer import Tokenizer


def is_lerobot(folder: Path) -> bool:
    """Return whether a folder has lerobot's `config.json`, which names the type of the policy."""
    config = folder / "config.json"
    has_type = config.is_file() and b'"type"' in config.read_bytes()
    return has_type or (folder / PREPROCESSOR).is_file()


def read_network(folder: Path, action_horizon: int) -> Pi0:
    """Return the network of a folder."""
    return _read_weights(folder, lerobot_read.LerobotFolder.read(folder), action_horizon)[0]


def _read_weights(
    folder: Path, files: lerobot_read.LerobotFolder, action_horizon: int
) -> tuple[Pi0, dict[str, Tensor]]:
    """Return the network, and the norm stats that lerobot <= 0.3 kept among its weights.

    Raises:
        ValueError: the config announces an adapter, and there is none.
    """
    if files.config.get("use_peft", False) and not adapter_files(folder):
        raise ValueError(
            f"{folder / 'config.json'} has use_peft=True, but there is no {ADAPTER_CONFIG} beside "
            "it, and the base alone is another policy; put the adapter's files there, or set "
            "use_peft to false if it is merged already"
        )
    weights, legacy = split_legacy_stats(read_weight_files(folder))
    arch = read_arch(folder)
    network = build_network(rename_weights(weights), heads_of(arch), action_horizon, folder)
    if not {"precision", "dtype"} & arch.keys() and "dtype" in files.config:
        network.compute_dtype = getattr(torch, files.config["dtype"])
    return network, legacy


def read(folder: Path, config: LoadConfig, pipeline: Pipeline | None = None) -> FlowPolicy:
    """Read a checkpoint folder of lerobot.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: norm stats are missing, files disagree, or they ask for something that is not
            supported.
    """
    # network, in the family that both files must name
    files, file = lerobot_read.LerobotFolder.read(folder), folder / "config.json"
    _check_type(files.config.get("type"), file)
    settings.check_settings(files.config, file)
    horizon = config.action_horizon or settings.whole(files.config, "chunk_size", file)
    network, legacy = _read_weights(folder, files, horizon)
    family = network.config.family
    if files.config.get("type") != family:
        raise ValueError(
            f"{file} has type={files.config.get('type')!r}, but the weights are "
            f"{family}'s; only pi0 and pi05 are supported, and both files must agree"
        )
    settings.check_sizes(files.config, network.config, file)

    # preprocessing, where the caller's norm stats replace those of the folder
    check_steps(files.before, files.after, family)
    if config.norm_stats is not None:
        stats = read_norm_stats(config.norm_stats)
    elif config.unnormalized:
        stats = None
    else:
        stats = lerobot_read.read_norm_stats(folder, files, legacy)
    check_normalized(folder, stats is not None, config)
    preprocessor = lerobot_read.preprocessor_config(
        files, stats, family, config.state_padding, config.lerobot_version
    )

    # sampler
    sampler = SamplerConfig(
        flow_steps=settings.flow_steps(files.config, file),
        execution_horizon=settings.execution_horizon(files.config, horizon, file),
    )

    # policy
    policy = FlowPolicy(network, preprocessor, sampler)
    tokenizer = _named_tokenizer(folder, files, config)
    warn_of_small_scales(policy, folder)
    # an adapter is merged, and the written policy has none
    origin = {"format": "lerobot", **asdict(replace(files, config=_merged(files.config)))}
    delay = settings.real_time_delay(files.config, file)
    info = PolicyInfo(origin=origin, tokenizer=tokenizer, real_time_delay=delay)
    return with_settings(policy.replace(info=info), config)


def _check_type(kind: object, file: Path) -> None:
    if kind not in ("pi0", "pi05"):
        raise ValueError(
            f"{file} has type={kind!r}; only 'pi0' and 'pi05' are supported, take a checkpoint of "
            "one of them"
        )


def _named_tokenizer(
    folder: Path, files: lerobot_read.LerobotFolder, config: LoadConfig
) -> Tokenizer | None:
    """Return the tokenizer that a checkpoint holds under the name in its step.

    Raises:
        ValueError: the step names another tokenizer than PaliGemma's, which is not here.
    """
    name = files.before.config("tokenizer_processor").get("tokenizer_name")
    if name is None or "paligemma" in str(name).lower() or config.tokenizer is not None:
        return None
    if not isinstance(name, str) or not (folder / name).is_dir():
        raise ValueError(
            f"{folder / PREPROCESSOR} has tokenizer_name={name!r}, which is neither PaliGemma's "
            "nor a folder of this checkpoint; pass its files (--load.tokenizer)"
        )
    return Tokenizer.load(folder / name)


def _merged(config: dict[str, object]) -> dict[str, object]:
    """Return the config of a policy whose adapter is merged."""
    if not config.get("use_peft", False):
        return config
    return {**config, "use_peft": False, "pretrained_path": None}
