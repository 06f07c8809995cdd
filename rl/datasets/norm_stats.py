"""Norm stats of states and actions from the statistics that a LeRobot dataset carries.

They are those of all its episodes. Version 2.1 has statistics per episode, which are combined here:
mean and deviation exactly, quantiles as lerobot does, as a mean over the episodes. Where a dataset
has no quantiles, the norm stats have none.
Source: lerobot 0.6.1 `datasets/compute_stats.py: aggregate_feature_stats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pitune.policies import NormStats
from pitune.rl.datasets.layout import OLD_STATS, STATS, is_dataset, read_json, read_json_lines

NAMES = ("mean", "std", "q01", "q99")


def dataset_norm_stats(
    folder: Path, state: Sequence[str] = ("observation.state",), action: Sequence[str] = ("action",)
) -> tuple[NormStats, NormStats]:
    """Return the norm stats of the joined features of state and action.

    Actions are measured as they are recorded. For a pipeline with relative actions compute the
    stats with `pitune norm-stats`.

    Args:
        folder: The dataset.
        state: Features of the state.
        action: Features of the action.

    Raises:
        FileNotFoundError: the dataset has no statistics.
        ValueError: they lack a feature, or are damaged.

    Example:
        >>> state, action = dataset_norm_stats(Path("my_dataset"))  # doctest: +SKIP
        >>> action.dim  # doctest: +SKIP
        7
    """
    if (folder / STATS).is_file():
        file, stats = folder / STATS, read_json(folder / STATS)
    elif (folder / OLD_STATS).is_file():
        file = folder / OLD_STATS
        stats = _combined([row["stats"] for row in read_json_lines(file)])
    else:
        advice = "pitune norm-stats computes them" if is_dataset(folder) else "it is no dataset"
        raise FileNotFoundError(f"{folder} has neither {STATS} nor {OLD_STATS}; {advice}")
    return _joined(file, stats, state), _joined(file, stats, action)


def _joined(file: Path, stats: Mapping[str, Any], features: Sequence[str]) -> NormStats:
    """Return the norm stats of some features, one after the other."""
    missing = [name for name in features if name not in stats]
    if missing:
        raise ValueError(f"{file} has no statistics of {missing}; it has {sorted(stats)}")
    names = [name for name in NAMES if all(name in stats[feature] for feature in features)]
    rows = {
        name: tuple(
            float(value)
            for feature in features
            for value in np.asarray(stats[feature][name], np.float64).ravel()
        )
        for name in names
    }
    try:
        return NormStats.from_dict(rows)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}, {list(features)}: {error}") from error


def _combined(episodes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the statistics of all frames from those of the episodes."""
    combined: dict[str, dict[str, Any]] = {}
    for feature in episodes[0] if episodes else ():
        parts = [episode[feature] for episode in episodes]
        counts = np.array([part["count"][0] for part in parts], np.float64)
        share = counts / counts.sum()
        # law of total variance over the episodes
        mean = np.array([np.ravel(part["mean"]) for part in parts], np.float64)
        std = np.array([np.ravel(part["std"]) for part in parts], np.float64)
        # (episodes, D) -> (D,)
        total = share @ mean
        variance = share @ (std**2 + (mean - total) ** 2)
        combined[feature] = {"mean": total, "std": np.sqrt(variance)}
        for name in NAMES[2:]:
            if all(name in part for part in parts):
                rows = np.array([np.ravel(part[name]) for part in parts], np.float64)
                combined[feature][name] = share @ rows
    return combined
