"""openpi's checkpoint folders: PyTorch safetensors, and the first-party JAX release (orbax).

A folder holds weights and norm stats, but neither horizon nor pipeline. Those come from
`pitune.policies.checkpoints.pipelines` or from the caller, and are never guessed.
Source: openpi `policies/policy_config.py`, `shared/normalize.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
from pitune.policies.checkpoints.layouts.weight_files import read_weight_files
from pitune.policies.checkpoints.orbax import read_orbax
from pitune.policies.checkpoints.pipelines import (
    CAMERAS,
    PIPELINES,
    Pipeline,
    nearest_pipeline,
    pipeline_named,
    read_pipeline,
)
from pitune.policies.checkpoints.pipelines import FILE as PIPELINE_FILE
from pitune.policies.checkpoints.weights import Heads, family_of, rename_weights
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy
from pitune.policies.policy_config import PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.norm_stats_file import (
    asset_of,
    find_norm_stats,
    read_norm_stats,
)
from pitune.policies.preprocessing.preprocessor import Normalization, PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig

EPSILON = 1e-6
"""Added by openpi to the standard deviation or to the quantiles' range [robot units]."""


def is_openpi(folder: Path) -> bool:
    """Return whether a folder holds safetensors. It is the last format to be asked."""
    return any(folder.glob("*.safetensors"))


def read(folder: Path, config: LoadConfig, pipeline: Pipeline | None = None) -> FlowPolicy:
    """Read a PyTorch checkpoint of openpi.

    Raises:
        ValueError: the pipeline or the norm stats are missing, or a file does not fit.
    """
    return _read_policy(folder, config, pipeline, read_network)


def read_orbax_policy(
    folder: Path, config: LoadConfig, pipeline: Pipeline | None = None
) -> FlowPolicy:
    """Read a JAX checkpoint of openpi. See `read`."""
    return _read_policy(folder, config, pipeline, read_orbax_network)


def read_network(folder: Path, action_horizon: int) -> Pi0:
    """Return the network of a PyTorch checkpoint of openpi."""
    weights = rename_weights(read_weight_files(folder))
    return build_network(weights, heads_of(read_arch(folder)), action_horizon, folder)


def read_orbax_network(folder: Path, action_horizon: int) -> Pi0:
    """Return the network of a JAX checkpoint of openpi."""
    weights, counts = read_orbax(folder)
    heads = Heads(
        num_heads=counts.num_heads,
        num_kv_heads=counts.num_kv_heads,
        vision_heads=counts.vision_heads,
    )
    return build_network(weights, heads, action_horizon, folder)


def _read_policy(
    folder: Path,
    config: LoadConfig,
    pipeline: Pipeline | None,
    read_network: Callable[[Path, int], Pi0],
) -> FlowPolicy:
    """Return the policy of a folder whose network `read_network` reads."""
    pipeline = _pipeline_of(folder, config) if pipeline is None else pipeline

    # network
    stored = read_arch(folder).get("action_horizon")
    horizon = config.action_horizon or stored or pipeline.action_horizon
    network = read_network(folder, horizon)
    family = network.config.family

    # norm stats
    file = None if config.unnormalized else config.norm_stats
    if file is None and not config.unnormalized:
        file = find_norm_stats(folder, config.asset)
    stats = None if file is None else read_norm_stats(file)
    if family != pipeline.family:
        dims = None if stats is None else (stats[0].dim, stats[1].dim)
        raise ValueError(
            f"{folder} holds {family} weights, but the pipeline is {pipeline.family}'s; pass a "
            f"pipeline of {family}, such as {nearest_pipeline(family, dims)!r}"
        )
    check_normalized(folder, stats is not None, config)

    # policy with openpi's sampler
    sampler = SamplerConfig(
        flow_steps=pipeline.flow_steps,
        execution_horizon=min(pipeline.execution_horizon, horizon),
        accumulated_time=True,
    )
    try:
        preprocessor = preprocessor_config(pipeline, stats, network.config)
    except ValueError as error:
        if stats is None:
            raise
        dims = (stats[0].unpadded().dim, stats[1].unpadded().dim)
        near = nearest_pipeline(family, dims)
        raise ValueError(
            f"{folder}: {error}. The nearest known pipeline to its {family} weights and norm stats "
            f"of {dims} dimensions is {near!r}"
        ) from error
    policy = FlowPolicy(network, preprocessor, sampler)

    # origin, with the folder of the norm stats for writing them back
    origin = {"format": "openpi"}
    if file is not None and config.norm_stats is None:
        origin["asset_id"] = asset_of(folder, file)
    warn_of_small_scales(policy, folder)
    return with_settings(policy.replace(info=PolicyInfo(origin=origin)), config)


def _pipeline_of(folder: Path, config: LoadConfig) -> Pipeline:
    """Return the pipeline that the caller names, or else that of the folder's own file.

    Raises:
        ValueError: there is none, or it is unknown.
    """
    if config.pipeline is not None:
        return pipeline_named(config.pipeline)
    if (folder / PIPELINE_FILE).is_file():
        return read_pipeline(folder / PIPELINE_FILE)
    raise ValueError(
        f"{folder} is an openpi checkpoint, which holds neither horizon nor cameras; pipeline=None "
        "must name the openpi config that trained it (--load.pipeline): one of "
        f"{sorted(PIPELINES)}{_hint(folder, config)}, or a .json or .yaml file for your own robot"
    )


def _hint(folder: Path, config: LoadConfig) -> str:
    """Return the known pipeline that is nearest to a folder, as a hint for messages."""
    weights = "".join(file.name for file in folder.glob("*.safetensors"))
    if not weights:  # a JAX checkpoint, whose leaves are dear to read
        return ""
    file = config.norm_stats or find_norm_stats(folder, config.asset)
    stats = None if file is None else read_norm_stats(file)
    dims = None if stats is None else (stats[0].unpadded().dim, stats[1].unpadded().dim)
    family = family_of(rename_weights(read_weight_files(folder)))
    near = nearest_pipeline(family, dims)
    return f" (the nearest to its {family} weights and norm stats of {dims} dimensions is {near!r})"


def preprocessor_config(
    pipeline: Pipeline, stats: tuple[NormStats, NormStats] | None, network: Pi0Config
) -> PreprocessorConfig:
    """Return openpi's preprocessing. Without stats nothing is normalized.

    Raises:
        ValueError: the stats belong to another robot, or lack what the pipeline needs.
    """
    normalization: Normalization = "quantile" if pipeline.quantiles else "zscore"
    normalization = "none" if stats is None else normalization
    dims = (pipeline.state_dim, pipeline.action_dim)
    if stats is None:
        if dims[0] is None or dims[1] is None:
            raise ValueError(
                f"the pipeline has state_dim={dims[0]} and action_dim={dims[1]}, and there are no "
                "norm stats to take them from; give both in the pipeline"
            )
        stats = NormStats.identity(dims[0]), NormStats.identity(dims[1])
    state, action = (
        part.unpadded() if dim is None else part.first(dim)
        for part, dim in zip(stats, dims, strict=True)
    )
    return PreprocessorConfig(
        state=state,
        action=action,
        normalization=normalization,
        epsilon=EPSILON,
        epsilon_out=EPSILON,
        min_scale=0.0,  # openpi has none
        delta_mask=pipeline.delta_mask,
        joints=pipeline.joints,
        pictures=PicturesConfig(
            cameras=pipeline.cameras,
            missing=tuple(name for name in CAMERAS if name not in pipeline.cameras),
            order=CAMERAS,
            size=network.vision.image_size if network.vision else 224,
        ),
        prompt=PromptConfig(max_tokens=pipeline.max_tokens, discrete_state=pipeline.discrete_state),
    )
