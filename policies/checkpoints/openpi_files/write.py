"""Writes a policy in openpi's format.

openpi keeps most settings of a policy in its Python configs. They are written into `pipeline.json`,
which openpi ignores, and its own rules for scales are folded into the norm stats.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from pitune.policies.checkpoints.external import (
    check_exportable,
    check_read_back,
    merged_weights,
    write_companions,
    write_weights,
)
from pitune.policies.checkpoints.files import write_json
from pitune.policies.checkpoints.keys import EMBEDDING, EXPERT_HEAD, LM_HEAD, openpi_keys
from pitune.policies.checkpoints.openpi import EPSILON, preprocessor_config
from pitune.policies.checkpoints.pipelines import CAMERAS, Pipeline
from pitune.policies.checkpoints.pipelines import FILE as PIPELINE_FILE
from pitune.policies.policy import FlowPolicy
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.norm_stats_file import FILE as NORM_STATS_FILE
from pitune.policies.preprocessing.norm_stats_file import norm_stats_json
from pitune.policies.preprocessing.preprocessor import Normalization
from pitune.policies.preprocessing.scales import folded_stats

DEFAULT_STEPS = 10
"""Flow steps of openpi's `sample_actions`, if its caller names no others."""


def write(policy: FlowPolicy, folder: Path) -> list[str]:
    """Write `model.safetensors`, `config.json` and the norm stats into an existing folder.

    openpi's strict reader expects the embedding under the name `lm_head` with a note of it in the
    metadata, and an `lm_head` of the expert, which it does not use.

    Returns:
        The differences between openpi's computation and this policy's.

    Raises:
        ValueError: openpi cannot express the policy's pipeline, or cannot read its weights.
    """
    network = policy.network.config
    weights = merged_weights(policy, "openpi")
    pipeline, stats, differences = _exported(policy)

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
        "precision": str(policy.network.compute_dtype).removeprefix("torch."),
    }
    write_json(folder / "config.json", description)

    # norm stats in the folder of their asset, and the settings that openpi keeps in its own code
    asset_id = policy.info.origin.get("asset_id", "pitune")
    file = folder / "assets" / asset_id / NORM_STATS_FILE
    file.parent.mkdir(parents=True)
    write_json(file, norm_stats_json(*stats))
    write_json(folder / PIPELINE_FILE, asdict(pipeline))
    write_companions(policy, folder)
    return differences


def _exported(policy: FlowPolicy) -> tuple[Pipeline, tuple[NormStats, NormStats], list[str]]:
    """Return the pipeline and norm stats with which openpi computes a policy's actions.

    Returns:
        Them, and the differences that remain.

    Raises:
        ValueError: openpi cannot express the policy.
    """
    network, config, sampler = policy.network.config, policy.preprocessor.config, policy.sampler
    check_exportable(policy, "openpi")
    pictures, prompt = config.pictures, config.prompt
    if pictures is None or prompt is None or not set(pictures.cameras) <= set(CAMERAS):
        raise ValueError(
            f"openpi's cameras are {CAMERAS}, this policy's "
            f"{[] if pictures is None else list(pictures.cameras)}, and it needs a prompt; save "
            "with format='pitune' or 'lerobot'"
        )

    # in openpi the normalization follows from the family, and a policy without one gets unit scales
    expected: Normalization = "quantile" if network.family == "pi05" else "zscore"
    if config.normalization not in (expected, "none"):
        raise ValueError(
            f"openpi normalizes {network.family} by {expected}, this policy by "
            f"{config.normalization}; save with format='pitune' or 'lerobot'"
        )
    scaled = config
    if config.normalization == "none":
        scaled = replace(
            config,
            state=NormStats.identity(config.state.dim),
            action=NormStats.identity(config.action.dim),
            normalization=expected,
            epsilon=0.0,
            epsilon_out=0.0,
            min_scale=0.0,
        )
    stats = folded_stats(scaled, EPSILON, EPSILON)
    pipeline = Pipeline(
        family=network.family,
        action_horizon=network.action_horizon,
        execution_horizon=sampler.execution_horizon,
        state_dim=config.state.dim,
        action_dim=config.action.dim,
        cameras=pictures.cameras,
        quantiles=expected == "quantile",
        discrete_state=prompt.discrete_state,
        delta_mask=config.delta_mask,
        joints=config.joints,
        prompt_tokens=prompt.max_tokens,
        flow_steps=sampler.flow_steps,
    )
    again = preprocessor_config(pipeline, stats, network)
    differences = check_read_back("openpi", scaled, again, _TOLERATED)
    if not sampler.accumulated_time:
        differences.append("flow times are accumulated in float32 (about 1e-4 in the actions)")
    if sampler.flow_steps != DEFAULT_STEPS:
        steps = f"{{'num_steps': {sampler.flow_steps}}}"
        differences.append(f"it takes {DEFAULT_STEPS} flow steps without sample_kwargs={steps}")
    return pipeline, stats, differences


_TOLERATED = {
    "pictures.resize": "pictures that are not of the right size are resized with antialias",
    "pictures.bars": "bars beside pictures that are not square are black",
    "prompt.clean": "prompts are cleaned of underscores and surrounding space",
    "prompt.default": "a prompt is needed, there is no default one",
}
"""Differences of openpi that are warned of, by the setting."""
