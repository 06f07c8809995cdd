"""openpi's checkpoint folders: PyTorch safetensors, and the first-party JAX release (orbax).

A folder holds weights and norm stats, but neither horizon nor pipeline. Those come from
`pitune.policies.checkpoints.pipelines` or from the caller, and are never guessed.
Source: openpi `policies/policy_config.py`, `shared/normalize.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pitune.policies.checkpoints.config import (
    LoadConfig,
    warn_of_raised_scales,
    with_settings,
)
from pitune.policies.checkpoints.external import (
    build_network,
    check_normalized,
    heads_of,
    merged_weights,
    read_arch,
    write_companions,
    write_weights,
)
from pitune.policies.checkpoints.files import write_json
from pitune.policies.checkpoints.keys import EMBEDDING, EXPERT_HEAD, LM_HEAD, openpi_keys
from pitune.policies.checkpoints.layouts.weight_files import read_weight_files
from pitune.policies.checkpoints.orbax import read_orbax
from pitune.policies.checkpoints.pipelines import CAMERAS, PIPELINES, Pipeline
from pitune.policies.checkpoints.weights import Heads, rename_weights
from pitune.policies.network.config import Pi0Config
from pitune.policies.network.pi0 import Pi0
from pitune.policies.policy import FlowPolicy, PolicyInfo, SamplerConfig
from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Normalization, PreprocessorConfig
from pitune.policies.preprocessing.prompt import PromptConfig

LOADED_MIN_SCALE = 1e-4
"""Floor of a loaded scale. It is far below a robot's movements, so it leaves the numbers of a
sound checkpoint unchanged [robot units]."""


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
    # pipeline
    if pipeline is None:
        if config.pipeline not in PIPELINES:
            raise ValueError(
                f"{folder} is an openpi checkpoint, which holds neither horizon nor cameras; "
                f"pipeline={config.pipeline!r} must name the openpi config that trained it "
                f"(--load.pipeline): {sorted(PIPELINES)}"
            )
        pipeline = PIPELINES[config.pipeline]

    # network
    stored = read_arch(folder).get("action_horizon")
    horizon = config.action_horizon or stored or pipeline.action_horizon
    network = read_network(folder, horizon)
    if network.config.family != pipeline.family:
        raise ValueError(
            f"{folder} holds {network.config.family} weights, but the pipeline is "
            f"{pipeline.family}'s; pass a pipeline of {network.config.family}"
        )

    # norm stats
    file = config.norm_stats or find_norm_stats(folder)
    stats = None if file is None else read_norm_stats(file)
    check_normalized(folder, stats is not None, config)

    # policy with openpi's sampler
    sampler = SamplerConfig(
        flow_steps=10,
        execution_horizon=min(pipeline.execution_horizon, horizon),
        accumulated_time=True,
    )
    policy = FlowPolicy(network, preprocessor_config(pipeline, stats, network.config), sampler)

    # origin, with the folder of the norm stats for writing them back
    origin = {"format": "openpi"}
    if file is not None and config.norm_stats is None:
        asset = file.parent.relative_to(folder)
        origin["asset_id"] = asset.as_posix().removeprefix("assets/")
    warn_of_raised_scales(policy, folder)
    return with_settings(policy.replace(info=PolicyInfo(origin=origin)), config)


def find_norm_stats(folder: Path) -> Path | None:
    """Return the file of norm stats in a checkpoint folder, or None.

    openpi keeps it in `assets/<asset id>/`, RLinf in `<asset id>/`. An id may contain slashes.

    Raises:
        ValueError: there are several.
    """
    found = sorted((folder / "assets").rglob("norm_stats.json"))
    found = found or sorted(folder.rglob("norm_stats.json"))
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds several norm stats, {[str(f.relative_to(folder)) for f in found]}; "
            "name one with --load.norm-stats"
        )
    return found[0] if found else None


def read_norm_stats(file: Path) -> tuple[NormStats, NormStats]:
    """Return the statistics of state and actions in an openpi file.

    Raises:
        ValueError: the file does not hold them.
    """
    try:
        stats = json.loads(file.read_text())["norm_stats"]
        state, action = (_stats(stats[key]) for key in ("state", "actions"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} does not hold norm stats of state and actions, with mean and std ({error!r}); "
            "pitune.experiments.norm_stats computes such a file"
        ) from error
    return state, action


def _stats(values: dict[str, Any]) -> NormStats:
    names = [name for name in ("mean", "std", "q01", "q99") if values.get(name) is not None]
    found = {name: tuple(map(float, values[name])) for name in names}
    return NormStats(**found) if "q01" in found else NormStats.without_quantiles(**found)


def preprocessor_config(
    pipeline: Pipeline, stats: tuple[NormStats, NormStats] | None, network: Pi0Config
) -> PreprocessorConfig:
    """Return openpi's preprocessing. Without stats nothing is normalized."""
    state_dim, action_dim = pipeline.state_dim, pipeline.action_dim
    normalization: Normalization
    if stats is None:
        stats = NormStats.identity(state_dim), NormStats.identity(action_dim)
        normalization = "none"
    else:
        normalization = "quantile" if pipeline.quantiles else "zscore"
    return PreprocessorConfig(
        state=stats[0].first(state_dim),
        action=stats[1].first(action_dim),
        normalization=normalization,
        min_scale=LOADED_MIN_SCALE,
        delta_mask=pipeline.delta_mask,
        joints=pipeline.joints,
        pictures=PicturesConfig(
            cameras=pipeline.cameras,
            missing=tuple(name for name in CAMERAS if name not in pipeline.cameras),
            size=network.vision.image_size if network.vision else 224,
        ),
        prompt=PromptConfig(max_tokens=pipeline.max_tokens, discrete_state=pipeline.discrete_state),
    )


def write(policy: FlowPolicy, folder: Path) -> list[str]:
    """Write `model.safetensors`, `config.json` and the norm stats into an existing folder.

    openpi's strict reader expects the embedding under the name `lm_head` with a note of it in the
    metadata, and an `lm_head` of the expert, which it does not use.

    Returns:
        The differences between openpi's computation and this policy's.

    Raises:
        ValueError: openpi cannot express the policy's pipeline, or cannot read its weights.
    """
    network, preprocessor = policy.network.config, policy.preprocessor.config
    weights = merged_weights(policy, "openpi")
    differences = _check_pipeline(network, preprocessor)

    # weights with openpi's two heads
    embedding = weights.pop(EMBEDDING)
    weights[LM_HEAD] = embedding
    weights[EXPERT_HEAD] = torch.zeros(len(embedding), network.expert.width, dtype=embedding.dtype)
    write_weights("openpi", weights, openpi_keys(network), folder, {EMBEDDING: LM_HEAD})

    # config.json
    description = {
        "action_dim": network.action_dim,
        "action_horizon": network.action_horizon,
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "precision": str(embedding.dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", description)

    # norm stats in the folder of their asset
    if preprocessor.normalization != "none":
        stats = {"state": asdict(preprocessor.state), "actions": asdict(preprocessor.action)}
        asset_id = policy.info.origin.get("asset_id", "pitune")
        file = folder / "assets" / asset_id / "norm_stats.json"
        file.parent.mkdir(parents=True)
        write_json(file, {"norm_stats": stats})
    write_companions(policy, folder)
    return differences


def _check_pipeline(network: Pi0Config, config: PreprocessorConfig) -> list[str]:
    """Return the differences of openpi's preprocessing from a policy's.

    Raises:
        ValueError: openpi cannot express it.
    """
    pictures, prompt = config.pictures, config.prompt
    if pictures is None or prompt is None or not set(pictures.cameras) <= set(CAMERAS):
        raise ValueError(
            f"openpi's cameras are {CAMERAS}, this policy's "
            f"{[] if pictures is None else list(pictures.cameras)}, and it needs a prompt; save "
            "with format='pitune' or 'lerobot'"
        )

    # in openpi the normalization follows from the family
    expected = "quantile" if network.family == "pi05" else "zscore"
    if config.normalization not in (expected, "none"):
        raise ValueError(
            f"openpi normalizes {network.family} by {expected}, this policy by "
            f"{config.normalization}; save with format='pitune' or 'lerobot'"
        )

    # settings that openpi does not have
    differences = {
        "pictures that are not of the right size are resized with antialias": (
            pictures.resize != "pillow"
        ),
        "prompts are cleaned of underscores and surrounding space": not prompt.clean,
        "1e-6 is added to the divisors": (config.epsilon, config.epsilon_out) != (1e-6, 1e-6),
        "the state in the prompt is not padded": prompt.state_padding > 0,
    }
    return [text for text, differs in differences.items() if differs]
