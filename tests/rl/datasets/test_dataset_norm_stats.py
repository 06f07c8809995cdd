"""Norm stats from the statistics that a dataset carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lerobot_datasets import episodes, recorded, version_2

from pitune.policies import NormStats
from pitune.policies.preprocessing.norm_stats_file import read_norm_stats
from pitune.rl.datasets.norm_stats import dataset_norm_stats


def test_they_are_those_of_the_frames(tmp_path: Path) -> None:
    table = episodes()
    state, action = dataset_norm_stats(recorded(tmp_path / "d", table))
    expected = NormStats.of(torch.cat([episode.state for episode in table]))
    for name in ("mean", "std", "q01", "q99"):
        assert getattr(state, name) == pytest.approx(getattr(expected, name), abs=1e-9)
    assert action.dim == 2


def test_those_of_the_episodes_of_version_2_are_combined(tmp_path: Path) -> None:
    table = episodes()
    state, action = dataset_norm_stats(version_2(tmp_path / "d", table))
    expected = NormStats.of(torch.cat([episode.action for episode in table]))
    assert action.mean == pytest.approx(expected.mean)
    assert action.std == pytest.approx(expected.std)
    assert action.quantiles is None
    assert state.dim == 3


def test_features_are_joined(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d", episodes())
    joined, _ = dataset_norm_stats(folder, ("action", "observation.state"))
    state, action = dataset_norm_stats(folder)
    assert joined.mean == action.mean + state.mean


def test_the_file_is_taken_as_norm_stats(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d", episodes())
    assert read_norm_stats(folder / "meta/stats.json") == dataset_norm_stats(folder)


def test_missing_statistics_are_named(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d", episodes())
    with pytest.raises(ValueError, match=r"stats.json has no statistics of \['velocity'\]"):
        dataset_norm_stats(folder, ("velocity",))
    file = folder / "meta/stats.json"
    content = json.loads(file.read_text())
    content["action"]["std"][0] = -1.0
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"stats.json, \['action'\]: "):
        dataset_norm_stats(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has neither .*stats.json nor .*norm-stats"):
        dataset_norm_stats(folder)
