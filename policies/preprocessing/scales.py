"""Norm stats for a program that scales by other rules, and a comparison of two pipelines.

openpi and lerobot add other constants to the divisors and have no least scale. A policy's own rules
are folded into the statistics that an export writes, so that the other program computes its
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pitune.policies.preprocessing.images import PicturesConfig
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import PreprocessorConfig, offset_and_scale

TOLERANCE = 1e-5
"""Largest relative difference of two scales that count as equal."""


def folded_stats(
    config: PreprocessorConfig, epsilon: float, epsilon_out: float
) -> tuple[NormStats, NormStats]:
    """Return statistics of state and action with which another program has a policy's scales.

    Args:
        config: Settings of the policy.
        epsilon: Constant that the other program adds to the divisor when it normalizes.
        epsilon_out: Constant that it adds to the factor when it unnormalizes.
    """
    return (
        _folded(config.state, config, config.epsilon - epsilon),
        _folded(config.action, config, config.epsilon_out - epsilon_out),
    )


def _folded(stats: NormStats, config: PreprocessorConfig, surplus: float) -> NormStats:
    """Return statistics whose scales are the policy's, plus a surplus, and not below zero."""
    least = config.min_scale
    # a number that is right already is not computed again, so that a round trip is exact
    std = tuple(max(0.0, max(value, least) + surplus) for value in stats.std)
    if config.normalization != "quantile" or stats.quantiles is None:
        std = std if config.normalization == "zscore" else stats.std
        return NormStats(**{**stats.as_dict(), "std": std})
    low, high = stats.quantiles
    raised = [b if b - a >= 2 * least else a + 2 * least for a, b in zip(low, high, strict=True)]
    q99 = tuple(max(a, b + surplus) for a, b in zip(low, raised, strict=True))
    return NormStats(mean=stats.mean, std=stats.std, q01=low, q99=q99)


def differing(config: PreprocessorConfig, other: PreprocessorConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings by which a deployed policy would act differently, with both values.

    Args:
        config: Settings of the policy.
        other: Settings of the same policy after another program has read it.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "state_dim": (config.state.dim, other.state.dim),
        "action_dim": (config.action.dim, other.action.dim),
        "delta_mask": (_mask(config), _mask(other)),
        "joints": (config.joints, other.joints),
    }
    for part in ("pictures", "prompt"):
        ours, theirs = (_settings(values, part) for values in (config, other))
        pairs |= {f"{part}.{k}": (ours.get(k), theirs.get(k)) for k in ours.keys() | theirs.keys()}
    if all(pairs[name][0] == pairs[name][1] for name in ("state_dim", "action_dim")):
        pairs |= _scales(config, other)
    return {name: pair for name, pair in sorted(pairs.items()) if pair[0] != pair[1]}


def _mask(config: PreprocessorConfig) -> list[bool]:
    mask = [*config.delta_mask, *(False,) * (config.action.dim - len(config.delta_mask))]
    return mask if any(mask) else []


def _settings(config: PreprocessorConfig, part: str) -> Mapping[str, Any]:
    """Return the settings of pictures or prompt that change a deployed policy's actions."""
    settings = getattr(config, part)
    if settings is None:
        return {"present": False}
    values = asdict(settings)
    if isinstance(settings, PicturesConfig):
        # masked cameras change nothing, and their names differ between the formats
        del values["missing"], values["order"]
        values["cameras"] = list(settings.cameras.items())
    else:
        padding = max(settings.state_padding, config.state.dim)
        values["state_padding"] = padding if settings.discrete_state else 0
    return values


def _scales(config: PreprocessorConfig, other: PreprocessorConfig) -> dict[str, tuple[Any, Any]]:
    """Return the dimensions whose scaling differs by more than rounding, with both values."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for name in ("state", "action"):
        (center, scale), (other_center, other_scale) = (
            _center_and_scale(values, name) for values in (config, other)
        )
        unit = other_scale.clamp(min=TOLERANCE**2)
        distance = torch.maximum((center - other_center).abs(), (scale - other_scale).abs()) / unit
        for i in (distance > TOLERANCE).nonzero().flatten().tolist():
            pairs[f"{name}[{i}] (center, scale)"] = (
                (float(center[i]), float(scale[i])),
                (float(other_center[i]), float(other_scale[i])),
            )
    return pairs


def _center_and_scale(config: PreprocessorConfig, name: str) -> tuple[Tensor, Tensor]:
    """Return the robot's values that map to 0, and their distance to those that map to 1."""
    # the scaling of a deployed policy: of its input, and of its output
    epsilon = config.epsilon if name == "state" else config.epsilon_out
    offset, scale = offset_and_scale(getattr(config, name), config, epsilon)
    return (offset + scale if config.normalization == "quantile" else offset), scale
