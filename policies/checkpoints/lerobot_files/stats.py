"""How a checkpoint of lerobot normalizes: modes and statistics of state and action.

The state is normalized by the preprocessor, and the action is unnormalized by the postprocessor,
which has modes and statistics of its own. The preprocessor's for the action count in lerobot's
training only. Here they are replaced by the postprocessor's, so that a demonstrated action is
normalized as an executed one is unnormalized.
Source: lerobot `processor/normalize_processor.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pitune.policies.checkpoints.files import read_safetensors
from pitune.policies.checkpoints.lerobot_files.steps import Steps
from pitune.policies.preprocessing.norm_stats import NormStats
from pitune.policies.preprocessing.preprocessor import Normalization

MODES: dict[str, Normalization] = {
    "MEAN_STD": "zscore",
    "QUANTILES": "quantile",
    "IDENTITY": "none",
}
STATE, ACTION = "observation.state", "action"
NORMALIZER, UNNORMALIZER = "normalizer_processor", "unnormalizer_processor"
_NEEDED = {"zscore": ("mean", "std"), "quantile": ("mean", "std", "q01", "q99"), "none": ()}


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """The normalization of the state or the action.

    Example:
        >>> Quantity(mode="none", stats={}, source="policy_preprocessor.json").mode
        'none'
    """

    mode: Normalization
    stats: Mapping[str, Tensor]
    """Statistics by name, empty if there are none."""
    source: str
    """Where they stand, for messages."""


def step_modes(
    before: Steps, after: Steps, feature_types: Mapping[str, str]
) -> tuple[Normalization, Normalization]:
    """Return how the steps normalize the state and unnormalize the action.

    Args:
        before: Steps of the preprocessor.
        after: Steps of the postprocessor.
        feature_types: Type of each input feature in `config.json`, which stands in for those of a
            step without features.

    Raises:
        ValueError: a mode is not supported.
    """
    config = before.config(NORMALIZER)
    types = _types(config, feature_types, before.file)
    # a step normalizes the state only if it lists it
    state = mode_of(config, types.get(STATE), "state", before.file)
    keys = config.get("normalize_observation_keys")
    if NORMALIZER not in before or (keys is not None and STATE not in keys):
        state = "none"
    mode_of(config, "ACTION", "action", before.file)
    return state, mode_of(after.config(UNNORMALIZER), "ACTION", "action", after.file)


def step_quantities(
    folder: Path,
    before: Steps,
    after: Steps,
    modes: tuple[Normalization, Normalization],
    feature_types: Mapping[str, str],
) -> tuple[Quantity, Quantity]:
    """Return the normalization of state and action that the steps compute, see `step_modes`.

    Raises:
        FileNotFoundError: a file of statistics is missing.
        ValueError: pictures are normalized, or a file is damaged.
    """
    config = before.config(NORMALIZER)
    inputs = _tensors(folder, before, NORMALIZER)
    outputs = _tensors(folder, after, UNNORMALIZER)
    _check_pictures(config, _types(config, feature_types, before.file), inputs, before.file)
    state = Quantity(mode=modes[0], stats=_of(inputs, STATE), source=before.file)
    action = Quantity(mode=modes[1], stats=_of(outputs, ACTION), source=after.file)
    trained = Quantity(
        mode=mode_of(config, "ACTION", "action", before.file),
        stats=_of(inputs, ACTION),
        source=before.file,
    )
    if trained.stats and action.stats:
        warn_of_other_targets(action, trained)
    return state, action


def norm_stats(quantity: Quantity, key: str, folder: Path) -> NormStats:
    """Return the statistics of a quantity.

    Raises:
        ValueError: names those that its mode needs and that are missing.
    """
    lacking = [name for name in _NEEDED[quantity.mode] if name not in quantity.stats]
    if lacking:
        mode = next(name for name, value in MODES.items() if value == quantity.mode)
        raise ValueError(
            f"{folder} normalizes {key} by {mode}, but the norm stats of {quantity.source} lack "
            f"{' or '.join(f'{key}.{name}' for name in lacking)}; they hold "
            f"{sorted(quantity.stats)}, take a complete checkpoint or pass norm_stats "
            "(--load.norm-stats)"
        )
    numbers = {
        name: tuple(quantity.stats[name].double().flatten().tolist())
        for name in ("mean", "std", "q01", "q99")
        if name in quantity.stats
    }
    has_quantiles = {"q01", "q99"} <= numbers.keys()
    try:
        if has_quantiles:
            return NormStats(**numbers)
        return NormStats.without_quantiles(mean=numbers["mean"], std=numbers["std"])
    except ValueError as error:
        raise ValueError(f"{folder}, {key} in {quantity.source}: {error}") from error


def _tensors(folder: Path, steps: Steps, name: str) -> dict[str, Tensor]:
    file = steps.state_file(name)
    return {} if file is None else read_safetensors(folder / file)


def _of(tensors: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    return {
        name.rpartition(".")[2]: value
        for name, value in tensors.items()
        if name.rpartition(".")[0] == key
    }


def _types(
    config: Mapping[str, Any], feature_types: Mapping[str, str], file: str
) -> Mapping[str, str]:
    """Return the type of each feature that a normalizer lists."""
    features = config.get("features")
    if features is None:
        return feature_types
    try:
        return {key: str(feature["type"]) for key, feature in features.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: the step {NORMALIZER!r} has features={features!r}, each of which must have a "
            "type; take a complete checkpoint"
        ) from error


def mode_of(config: Mapping[str, Any], kind: str | None, word: str, file: str) -> Normalization:
    """Return how a step normalizes features of a type. Those that it does not map stay as is.

    Args:
        config: Settings of the step.
        kind: Type of the feature, None if the step does not list it.
        word: Name of the feature, for messages.
        file: The step's file, for messages.

    Raises:
        ValueError: the mode is not supported.
    """
    norm_map = config.get("norm_map", {})
    if not isinstance(norm_map, Mapping):
        raise ValueError(
            f"{file} has norm_map={norm_map!r}, which must map each type of feature to one of "
            f"{sorted(MODES)}; take a complete checkpoint"
        )
    mode = norm_map.get(kind, "IDENTITY")
    if mode not in MODES:
        raise ValueError(
            f"{file} normalizes its {word} by {mode}; both must use the same one of "
            f"{sorted(MODES)}, train or export the policy so"
        )
    return MODES[mode]


def _check_pictures(
    config: Mapping[str, Any], types: Mapping[str, str], tensors: Mapping[str, Tensor], file: str
) -> None:
    """Fail if pictures are normalized. Without statistics of a camera, lerobot leaves it as is."""
    mode = (config.get("norm_map") or {}).get("VISUAL", "IDENTITY")
    keys = config.get("normalize_observation_keys")
    normalized = [
        key
        for key, kind in types.items()
        if kind == "VISUAL" and _of(tensors, key) and (keys is None or key in keys)
    ]
    if mode != "IDENTITY" and normalized:
        raise picture_error(file, mode)


def picture_error(file: str, mode: str) -> ValueError:
    """Return the error for a checkpoint that normalizes its pictures."""
    return ValueError(
        f"{file} normalizes pictures by VISUAL={mode}, which π0's vision tower was not trained "
        "with and is not implemented; only 'IDENTITY' is, train or export the policy so"
    )


def warn_of_other_targets(action: Quantity, trained: Quantity) -> None:
    """Warn if actions were normalized otherwise in training than they are unnormalized."""
    names = sorted(set(_NEEDED[action.mode]) & trained.stats.keys() & action.stats.keys())
    differing = [
        name
        for name in names
        if trained.stats[name].shape != action.stats[name].shape
        or not torch.allclose(trained.stats[name].float(), action.stats[name].float())
    ]
    if trained.mode != action.mode or differing:
        warnings.warn(
            f"actions are normalized by {trained.mode} in {trained.source} and unnormalized by "
            f"{action.mode} in {action.source}, with differing {differing}; the latter is used "
            "for both, as in the actions that lerobot executes",
            stacklevel=2,
        )
