"""Datasets that go to lerobot and come from it. Run with lerobot's Python:

PITUNE_LEROBOT_PYTHON=/path/to/python pytest -m slow tests/rl/datasets/test_lerobot_peer.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_datasets import episodes, recorded

from pitune.rl.datasets.columns import RecordedEpisode
from pitune.rl.datasets.dataset import EpisodeDataset, Frames

PYTHON = os.environ.get("PITUNE_LEROBOT_PYTHON")
"""Python with `lerobot[dataset]==0.6.1`."""
SCRIPT = Path(__file__).parents[2] / "peers" / "datasets_with_lerobot.py"
CAMERAS = ("front", "wrist")
VIDEO_TOLERANCE = 3.0
"""Mean distance of a picture in a video from the recorded one [levels of 255]."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="PITUNE_LEROBOT_PYTHON names no Python"),
]


def lerobot(*words: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [str(PYTHON), str(SCRIPT), *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def frames_of(data: EpisodeDataset) -> list[Frames]:
    return [data.frames(i, 0, data.episodes[i].length) for i in range(len(data.episodes))]


def joined(table: list[RecordedEpisode]) -> dict[str, Any]:
    """Return all frames under lerobot's names."""
    columns: dict[str, Any] = {
        "observation.state": torch.cat([episode.state for episode in table]).numpy(),
        "action": torch.cat([episode.action for episode in table]).numpy(),
        "task": np.array([episode.task for episode in table for _ in range(len(episode))]),
        "episode_index": np.repeat(np.arange(len(table)), [len(episode) for episode in table]),
    }
    for camera in CAMERAS:
        name = f"observation.images.{camera}"
        columns[name] = torch.cat([episode.pictures[camera] for episode in table]).numpy()
    return columns


def distance(first: Any, second: Any) -> float:
    """Return the mean distance of pictures [levels of 255]."""
    return float(np.abs(np.asarray(first, np.int64) - np.asarray(second, np.int64)).mean())


@pytest.fixture
def table() -> list[RecordedEpisode]:
    return episodes((12, 9, 15), size=64, cameras=CAMERAS)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_lerobot_reads_our_dataset(tmp_path: Path, table: list[RecordedEpisode], kind: str) -> None:
    folder = recorded(tmp_path / "d", table, kind)
    lerobot("read", str(folder), str(tmp_path / "frames.npz"))
    found, expected = np.load(tmp_path / "frames.npz"), joined(table)
    for name in ("observation.state", "action", "task", "episode_index"):
        assert np.array_equal(found[name], expected[name]), name
    reward = torch.cat([episode.signals["next.reward"] for episode in table]).numpy()
    assert np.array_equal(found["next.reward"].ravel(), reward)
    assert found["fps"] == 20
    for camera in CAMERAS:
        name = f"observation.images.{camera}"
        if kind == "image":
            assert np.array_equal(found[name], expected[name])
        assert distance(found[name], expected[name]) < VIDEO_TOLERANCE

        # both decode the same pictures
        ours = [frames.obs[f"image/{camera}"] for frames in frames_of(open_ours(folder))]
        assert np.array_equal(found[name], torch.cat(ours).numpy())


def open_ours(folder: Path) -> EpisodeDataset:
    return EpisodeDataset(folder, cameras=CAMERAS)


def test_our_statistics_are_those_that_lerobot_computes(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    """Quantiles differ by intent: lerobot's are means over the episodes."""
    folder = recorded(tmp_path / "d", table)
    lerobot("read", str(folder), str(tmp_path / "frames.npz"))
    found = np.load(tmp_path / "frames.npz")
    names = {name for name in found if name.startswith("recomputed/")}
    assert {name.split("/")[1] for name in names} > {"action", "observation.images.front"}
    for name in names:
        ours = found[name.replace("recomputed", "stats")]
        assert ours.shape == found[name].shape, name
        if name.rpartition("/")[2] in ("min", "max", "mean", "std", "count"):
            # lerobot's running deviation of pictures is the less exact one
            tolerance = 2e-3 if "images" in name else 1e-5
            assert np.allclose(ours, found[name], atol=tolerance, rtol=1e-5), name


@pytest.mark.parametrize("kind", ["image", "video"])
def test_we_read_a_dataset_of_lerobot(
    tmp_path: Path, table: list[RecordedEpisode], kind: str
) -> None:
    np.savez(tmp_path / "frames.npz", **joined(table))
    lerobot("write", str(tmp_path / "frames.npz"), str(tmp_path / "d"), "--pictures", kind)
    data = open_ours(tmp_path / "d")
    assert (data.metadata.version, data.metadata.fps) == ("v3.0", 20.0)
    for frames, episode in zip(frames_of(data), table, strict=True):
        assert torch.equal(frames.obs["state"], episode.state)
        assert torch.equal(frames.action, episode.action)
        assert {data.tasks[task] for task in frames.obs["task_id"].tolist()} == {episode.task}
        for camera in CAMERAS:
            found = frames.obs[f"image/{camera}"]
            assert kind == "video" or torch.equal(found, episode.pictures[camera])
            assert distance(found, episode.pictures[camera]) < VIDEO_TOLERANCE
