"""Norm stats of lerobot <= 0.3, which kept them among the weights and had no step files.

Source: lerobot 0.3 `policies/normalize.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pitune.policies.checkpoints.lerobot_files.stats import (
    Quantity,
    mode_of,
    picture_error,
    warn_of_other_targets,
)
from pitune.policies.preprocessing.preprocessor import Normalization

_LEGACY = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
LEGACY_MODES = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
"""lerobot's default modes."""


def legacy_modes(config: Mapping[str, Any]) -> tuple[Normalization, Normalization]:
    """Return how lerobot <= 0.3 normalizes state and action, by `config.json`.

    Raises:
        ValueError: a mode is not supported.
    """
    modes = {"norm_map": config.get("normalization_mapping", LEGACY_MODES)}
    state, action = (mode_of(modes, key.upper(), key, "config.json") for key in ("state", "action"))
    return state, action


def legacy_quantities(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    modes: tuple[Normalization, Normalization],
) -> tuple[Quantity, Quantity]:
    """Return the normalization of lerobot <= 0.3, which kept the statistics among the weights.

    Args:
        tensors: The statistics, see `split_legacy_stats`.
        config: Content of `config.json`.
        modes: Those of `legacy_modes`.

    Raises:
        ValueError: pictures are normalized.
    """
    visual = config.get("normalization_mapping", LEGACY_MODES).get("VISUAL", "IDENTITY")
    pictures = [key for key in tensors if key.startswith("normalize_inputs.buffer_observation_ima")]
    if pictures and visual != "IDENTITY":
        raise picture_error("config.json", visual)

    def buffers(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    # (mode, name among the weights)
    inputs, outputs, targets = (
        Quantity(mode=mode, stats=buffers(f"{name}."), source=f"{name} in the weights")
        for mode, name in (
            (modes[0], "normalize_inputs.buffer_observation_state"),
            (modes[1], "unnormalize_outputs.buffer_action"),
            (modes[1], "normalize_targets.buffer_action"),
        )
    )
    if targets.stats:
        warn_of_other_targets(outputs, targets)
    return inputs, outputs


def split_legacy_stats(
    weights: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights, and the statistics that lerobot <= 0.3 kept among them."""
    stats = {
        key.removeprefix("model."): value
        for key, value in weights.items()
        if key.removeprefix("model.").startswith(_LEGACY)
    }
    return {k: v for k, v in weights.items() if k.removeprefix("model.") not in stats}, stats
