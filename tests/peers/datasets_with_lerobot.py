"""Reads and writes a dataset with lerobot itself. It runs in an environment with lerobot 0.6.1.

    python tests/peers/datasets_with_lerobot.py read FOLDER frames.npz
    python tests/peers/datasets_with_lerobot.py write frames.npz FOLDER --pictures video

`read` opens the folder as a `LeRobotDataset`, and writes every frame, its words and the statistics:
those of the folder, and those that lerobot computes from the same frames. `write` makes a dataset
of the frames in such a file. `test_lerobot_peer.py` compares both with ours.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.compute_stats import aggregate_stats, get_feature_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def read(folder: Path, out: Path) -> None:
    """Write the frames of a dataset, as lerobot reads them, into a file."""
    data = LeRobotDataset(folder.name, root=folder, video_backend="pyav")
    rows: dict[str, list[Any]] = {}
    for i in range(len(data)):
        for name, value in data[i].items():
            if name in data.meta.camera_keys:
                value = (value * 255).round().byte()
            rows.setdefault(name, []).append(value if isinstance(value, str) else value.numpy())
    arrays: dict[str, Any] = {name: np.array(values) for name, values in rows.items()}
    arrays["fps"] = np.array(data.meta.fps)
    for name, stats in data.meta.stats.items():
        arrays |= {f"stats/{name}/{key}": value for key, value in stats.items()}
    for name, stats in recomputed(data, arrays).items():
        arrays |= {f"recomputed/{name}/{key}": value for key, value in stats.items()}
    np.savez(out, **arrays)
    print(f"lerobot read {len(data)} frames in {data.meta.total_episodes} episodes")


def recomputed(data: LeRobotDataset, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the statistics that lerobot computes from the frames, aggregated over episodes."""
    parts = []
    for episode in range(data.meta.total_episodes):
        chosen = arrays["episode_index"] == episode
        stats = {}
        for name, feature in data.meta.features.items():
            values = arrays[name][chosen]
            if name in data.meta.camera_keys:
                found = get_feature_stats(values, axis=(0, 2, 3), keepdims=True)
                stats[name] = {
                    key: value if key == "count" else np.squeeze(value / 255, axis=0)
                    for key, value in found.items()
                }
            elif feature["dtype"] not in ("bool", "string"):
                stats[name] = get_feature_stats(values, axis=0, keepdims=values.ndim == 1)
        parts.append(stats)
    return aggregate_stats(parts)


def write(source: Path, folder: Path, pictures: str) -> None:
    """Make a dataset with lerobot from the frames of a file."""
    arrays = np.load(source)
    cameras = [name for name in arrays if name.startswith("observation.images.")]
    numbers = ["observation.state", "action"]
    features = {
        name: {"dtype": "float32", "shape": arrays[name].shape[1:], "names": None}
        for name in numbers
    }
    features |= {
        # (N, 3, Y, X) -> (Y, X, 3)
        name: {
            "dtype": pictures,
            "shape": (*arrays[name].shape[2:], 3),
            "names": ["height", "width", "channels"],
        }
        for name in cameras
    }
    data = LeRobotDataset.create(
        folder.name, fps=20, features=features, root=folder, use_videos=pictures == "video"
    )
    episodes = arrays["episode_index"]
    for i, episode in enumerate(episodes):
        frame = {name: arrays[name][i] for name in numbers}
        frame |= {name: arrays[name][i].transpose(1, 2, 0) for name in cameras}
        data.add_frame(frame | {"task": str(arrays["task"][i])})
        if i + 1 == len(episodes) or episodes[i + 1] != episode:
            data.save_episode()
    data.finalize()
    print(f"lerobot wrote {len(episodes)} frames")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["read", "write"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--pictures", default="video", choices=["video", "image"])
    args = parser.parse_args()
    if args.action == "read":
        read(args.source, args.target)
    else:
        write(args.source, args.target, args.pictures)


if __name__ == "__main__":
    main()
