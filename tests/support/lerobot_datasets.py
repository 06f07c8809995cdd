"""Small datasets for tests: recorded by us, or made by the specification of version 2.1."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from pitune.rl.datasets.columns import RecordedEpisode
from pitune.rl.datasets.config import RecordConfig
from pitune.rl.datasets.writer import DatasetWriter

WORDS = ("push the cube", "pull the cube")
LENGTHS = (7, 5, 9, 4)


def episodes(
    lengths: tuple[int, ...] = LENGTHS, size: int = 16, cameras: tuple[str, ...] = ("front",)
) -> list[RecordedEpisode]:
    """Return episodes with random numbers, smooth pictures and alternating words."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(lengths):
        reward = torch.rand(length, generator=generator)
        found.append(
            RecordedEpisode(
                state=torch.randn(length, 3, generator=generator),
                action=torch.randn(length, 2, generator=generator),
                task=WORDS[number % 2],
                pictures={
                    name: pictures(length, size, shift=number * 30 + 7 * i)
                    for i, name in enumerate(cameras)
                },
                signals={
                    "next.reward": reward,
                    "next.terminated": torch.arange(length) == length - 1,
                },
                success=True,
                seed=number,
            )
        )
    return found


def pictures(num: int, size: int, shift: int) -> Tensor:
    """Return smooth gray pictures (N, 3, Y, X) that change from frame to frame."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    phase = (y + 2 * x)[None] / size * 3 + torch.arange(num)[:, None, None] / 4 + shift
    gray = 128 + 100 * torch.sin(phase)
    return gray[:, None].expand(-1, 3, -1, -1).to(torch.uint8).contiguous()


def recorded(
    folder: Path, table: list[RecordedEpisode], kind: str = "image", fps: float = 20.0
) -> Path:
    """Write episodes as a dataset v3.0 and return its folder."""
    config = RecordConfig(pictures=kind)  # type: ignore[arg-type]
    with DatasetWriter(folder, fps=fps, config=config) as writer:
        for episode in table:
            writer.add(episode)
    return folder


def version_2(folder: Path, table: list[RecordedEpisode], fps: int = 20) -> Path:
    """Write episodes as a dataset v2.1, by lerobot 0.3.3's specification, and return its folder."""
    (folder / "meta").mkdir(parents=True)
    words = list(dict.fromkeys(episode.task for episode in table))
    first, stats, rows = 0, [], []
    for number, episode in enumerate(table):
        num = len(episode)
        columns: dict[str, Any] = {
            "observation.state": episode.state.tolist(),
            "action": episode.action.tolist(),
            "timestamp": np.arange(num, dtype=np.float32) / fps,
            "frame_index": np.arange(num),
            "episode_index": np.full(num, number),
            "index": first + np.arange(num),
            "task_index": np.full(num, words.index(episode.task)),
        }
        for name, value in episode.cameras().items():
            columns[name] = [{"bytes": png(picture), "path": None} for picture in value]
        file = folder / f"data/chunk-000/episode_{number:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        rows.append({"episode_index": number, "tasks": [episode.task], "length": num})
        parts = {"observation.state": episode.state, "action": episode.action}
        stats.append(
            {
                "episode_index": number,
                "stats": {name: of_values(value) for name, value in parts.items()},
            }
        )
        first += num
    lines = {
        "tasks": [{"task_index": i, "task": task} for i, task in enumerate(words)],
        "episodes": rows,
        "episodes_stats": stats,
    }
    for name, content in lines.items():
        text = "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"meta/{name}.jsonl").write_text(text)
    features = {
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "action": {"dtype": "float32", "shape": [2], "names": None},
        **{
            name: {"dtype": "image", "shape": [*value.shape[2:], 3], "names": None}
            for name, value in table[0].cameras().items()
        },
    }
    info = {
        "codebase_version": "v2.1",
        "robot_type": None,
        "total_episodes": len(table),
        "total_frames": first,
        "total_tasks": len(words),
        "total_videos": 0,
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(table)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
        "features": features,
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def of_values(values: Tensor) -> dict[str, Any]:
    """Return the statistics of an episode as lerobot 0.3.3 stores them, without quantiles."""
    exact = values.double()
    return {
        "min": exact.amin(0).tolist(),
        "max": exact.amax(0).tolist(),
        "mean": exact.mean(0).tolist(),
        "std": exact.std(0, correction=0).tolist(),
        "count": [len(values)],
    }


def png(picture: Tensor) -> bytes:
    """Return a picture (3, Y, X) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
