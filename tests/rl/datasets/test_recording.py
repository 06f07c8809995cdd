"""Written datasets: whole or not at all, with the format's metadata, from every kind of play."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_datasets import LENGTHS, WORDS, episodes, recorded

from pitune import envs, rl
from pitune.envs import CheckedEnv
from pitune.envs.mock.reach import Reach
from pitune.envs.vector_env import StepResult
from pitune.extras import install_command
from pitune.policies import FlowPolicy
from pitune.rl.datasets import layout
from pitune.rl.datasets.columns import RecordedEpisode
from pitune.rl.datasets.config import DataConfig, RecordConfig
from pitune.rl.datasets.dataset import EpisodeDataset
from pitune.rl.datasets.demonstrations import load_demonstrations
from pitune.rl.datasets.recorder import (
    EpisodeRecorder,
    RecordingEnv,
    record,
    write_demonstrations,
)
from pitune.rl.datasets.rolling import file_place
from pitune.rl.datasets.writer import DatasetWriter

ROOT = Path(__file__).parents[3]


def reach(num_envs: int = 4, **changes: Any) -> CheckedEnv:
    return envs.make(envs.EnvConfig(id="mock/Reach", num_envs=num_envs, num_workers=0, **changes))


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "meta/info.json").read_text())
    return content


def test_the_metadata_describe_the_dataset(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "d", episodes(), "video")
    info = read(folder)
    assert (info["codebase_version"], info["fps"], info["splits"]) == ("v3.0", 20, {"train": "0:4"})
    totals = [info[f"total_{name}"] for name in ("episodes", "frames", "tasks")]
    assert totals == [4, sum(LENGTHS), 2]
    camera = info["features"]["observation.images.front"]
    assert (camera["dtype"], camera["shape"]) == ("video", [16, 16, 3])
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": None}
    rows = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["tasks"] for row in rows] == [[WORDS[0]], [WORDS[1]]] * 2
    assert [row["dataset_from_index"] for row in rows] == [0, 7, 12, 21]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    starts = [row["videos/observation.images.front/from_timestamp"] for row in rows]
    assert starts == pytest.approx([0, 0.35, 0.6, 1.05])


def test_each_episode_is_a_row_group(tmp_path: Path) -> None:
    """So an episode is read without those beside it."""
    folder = recorded(tmp_path / "d", episodes())
    metadata = pq.ParquetFile(folder / "data/chunk-000/file-000.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(4)] == list(LENGTHS)
    rows = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    assert rows.column("index").to_pylist() == list(range(sum(LENGTHS)))


def test_the_statistics_are_those_of_the_frames(tmp_path: Path) -> None:
    table = episodes()
    stats = json.loads((recorded(tmp_path / "d", table) / "meta/stats.json").read_text())
    action = torch.cat([episode.action for episode in table]).double().numpy()
    assert np.allclose(stats["action"]["mean"], action.mean(0))
    assert np.allclose(stats["action"]["std"], action.std(0))
    assert np.allclose(stats["action"]["q01"], np.quantile(action, 0.01, axis=0))
    assert stats["action"]["count"] == [25]
    pictures = torch.cat([episode.pictures["front"] for episode in table]).double().numpy() / 255
    camera = stats["observation.images.front"]
    assert np.allclose(np.squeeze(camera["mean"]), pictures.mean((0, 2, 3)))
    assert np.allclose(np.squeeze(camera["std"]), pictures.std((0, 2, 3)))
    assert np.allclose(np.squeeze(camera["max"]), pictures.max((0, 2, 3)))
    assert np.shape(camera["q99"]) == (3, 1, 1)
    exact = np.quantile(pictures[:, 0], 0.9)
    assert abs(np.ravel(camera["q90"])[0] - exact) <= 1 / 255


def test_files_roll_over_at_their_size(tmp_path: Path) -> None:
    table = episodes((30, 30, 30), size=64)
    config = RecordConfig(data_mib=1e-4, video_mib=1e-4)
    with DatasetWriter(tmp_path / "d", fps=20.0, config=config) as writer:
        for episode in table:
            writer.add(episode)
    assert len(list((tmp_path / "d/data").rglob("*.parquet"))) == 3
    assert len(list((tmp_path / "d/videos").rglob("*.mp4"))) > 1
    data = EpisodeDataset(tmp_path / "d", cameras=["front"])
    for number, episode in enumerate(table):
        frames = data.frames(number, 0, 30)
        assert torch.equal(frames.action, episode.action)
        difference = frames.obs["image/front"].int() - episode.pictures["front"].int()
        assert difference.abs().float().mean() < 3
    assert file_place(2005) == {"chunk_index": 2, "file_index": 5}


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match=r"exists already; pass another folder"):
        DatasetWriter(tmp_path, fps=20.0)


def test_an_exception_leaves_no_dataset(tmp_path: Path) -> None:
    def stopped() -> None:
        with DatasetWriter(tmp_path / "d", fps=20.0) as writer:
            writer.add(episodes()[0])
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_no_episode_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"would hold no episode"):
        DatasetWriter(tmp_path / "d", fps=20.0).close()
    assert list(tmp_path.iterdir()) == []


def test_a_broken_episode_is_refused(tmp_path: Path) -> None:
    good = episodes()[0]
    writer = DatasetWriter(tmp_path / "d", fps=20.0)
    action = good.action.clone()
    action[4, 1] = float("inf")
    with pytest.raises(ValueError, match=r"'action' is not finite in frame 4 of the episode"):
        writer.add(replace(good, action=action))
    with pytest.raises(ValueError, match=r"equally many in each part"):
        writer.add(replace(good, state=good.state[:3]))
    writer.add(good)
    with pytest.raises(ValueError, match=r"episode 1 differs from the first one in \['action'\]"):
        writer.add(replace(good, action=torch.zeros(7, 3)))
    writer.abandon()


def test_odd_pictures_become_no_video(tmp_path: Path) -> None:
    (odd,) = episodes((3,), size=15)
    writer = DatasetWriter(tmp_path / "d", fps=20.0)
    with pytest.raises(ValueError, match=r"15 x 15 pixels cannot become a video, .*'image'"):
        writer.add(odd)
    writer.abandon()
    recorded(tmp_path / "images", [odd])


KILLED = """
import sys
from pathlib import Path
from lerobot_datasets import episodes
from pitune.rl.datasets.writer import DatasetWriter

writer = DatasetWriter(Path(sys.argv[1]), fps=20.0)
table = episodes((40,), size=64)
while True:
    writer.add(table[0])
    print(writer.num_episodes, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_no_dataset_and_the_next_one_starts_anew(tmp_path: Path) -> None:
    path = f"{ROOT}:{ROOT / 'tests/support'}"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "d")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "d").exists()
    recorded(tmp_path / "d", episodes())
    assert EpisodeDataset(tmp_path / "d", cameras=["front"]).num_frames == sum(LENGTHS)
    assert [file.name for file in tmp_path.iterdir()] == ["d"]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ModuleNotFoundError) as error:
        DatasetWriter(tmp_path / "d", fps=20.0)
    assert install_command("datasets") in str(error.value)
    assert layout.require("json") is json


def test_a_recorded_environment_plays_the_same(tmp_path: Path) -> None:
    env = reach()
    plain = rl.collect_demonstrations(env, 8, seed=0)
    with EpisodeRecorder(tmp_path / "d", env.spec) as recorder:
        same = rl.collect_demonstrations(record(reach(), recorder), 8, seed=0)
        assert recorder.num_episodes >= 8
    assert torch.equal(plain.action, same.action)
    assert torch.equal(plain.reward, same.reward)  # type: ignore[arg-type]

    # each demonstrated episode is in the dataset, step by step
    table = load_demonstrations(tmp_path / "d")
    for number in range(8):
        rows = plain.episode == number
        episode = {key: plain.obs[key][rows] for key in ("state",)} | {"action": plain.action[rows]}
        found = [
            other
            for other in range(table.num_episodes)
            if torch.equal(table.action[table.episode == other], episode["action"])
        ]
        assert found
        assert torch.equal(table.obs["state"][table.episode == found[0]], episode["state"])
    assert (table.fps, table.reward_definition, table.tasks) == (
        env.spec.control_hz,
        env.spec.reward,
        env.spec.tasks,
    )


def test_an_evaluation_is_recorded_with_failures(tmp_path: Path, tiny_policy: Any) -> None:
    policy: FlowPolicy = tiny_policy()
    algorithm = rl.make(rl.PPOConfig(), policy)
    env = reach(max_episode_steps=6)
    with EpisodeRecorder(tmp_path / "d", env.spec) as recorder:
        outcome = rl.evaluate(record(env, recorder), algorithm.actor, 10)
    data = EpisodeDataset(tmp_path / "d", DataConfig(episodes="all"))
    rows = pq.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert {row["seed"] for row in rows} == {row.seed for row in outcome.rows}
    solved = {row["seed"]: row["success"] for row in rows}
    assert solved == {row.seed: row.success_once for row in outcome.rows}
    lengths = {row["seed"]: row["length"] for row in rows}
    assert lengths == {row.seed: row.length for row in outcome.rows}
    returns = [
        float(data.frames(i, 0, data.episodes[i].length).reward.sum())  # type: ignore[union-attr]
        for i in range(10)
    ]
    expected = {row.seed: row.episode_return for row in outcome.rows}
    assert returns == pytest.approx([expected[row["seed"]] for row in rows], abs=1e-5)
    facts = json.loads((tmp_path / "d/meta/pitune.json").read_text())
    assert facts["environment"] == "mock/Reach"
    assert facts["success_rule"] == "once"


def test_an_episode_without_its_end_is_left_out(tmp_path: Path) -> None:
    env = reach(2)
    with EpisodeRecorder(tmp_path / "d", env.spec) as recorder:
        played = record(env, recorder)
        played.reset(torch.tensor([0, 1]))
        active = torch.tensor([True, True])
        played.step(torch.zeros(2, 2), active)
        played.reset(torch.tensor([5]), torch.tensor([0]))  # the first episode is given up
        expert = played.expert()
        while active.any():
            result = played.step(expert.act(), active)
            active = active & ~(result.terminated | result.truncated)
        played.step(torch.zeros(2, 2), torch.tensor([True, False]))
    rows = pq.read_table(tmp_path / "d/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert sorted(row["seed"] for row in rows) == [1, 5]


def test_a_broken_episode_is_left_out() -> None:
    class Breaking(Reach):
        def step(
            self, action: torch.Tensor, active: torch.Tensor, pictures: torch.Tensor | None = None
        ) -> StepResult:
            result = super().step(action, active, pictures)
            broken = torch.tensor([True, False])
            return result._replace(
                truncated=result.truncated | True, info={**result.info, "invalid": broken}
            )

    found: list[RecordedEpisode] = []
    env = RecordingEnv(Breaking(2), found.append, "once")
    env.reset(torch.tensor([3, 4]))
    env.step(torch.zeros(2, 2), torch.tensor([True, True]))
    assert [episode.seed for episode in found] == [4]


def test_pictures_of_an_environment_are_recorded(tmp_path: Path) -> None:
    env = reach(2, cameras=("front",), image_size=20)
    config = RecordConfig(pictures="image")
    with EpisodeRecorder(tmp_path / "d", env.spec, config) as recorder:
        table = rl.collect_demonstrations(record(env, recorder), 2, seed=0)
    data = EpisodeDataset(tmp_path / "d", cameras=["front"])
    frames = data.frames(0, 0, data.episodes[0].length)
    pictures = table.obs["image/front"]
    assert any(
        torch.equal(frames.obs["image/front"], pictures[table.episode == number])
        for number in range(2)
    )


def test_demonstrations_come_back_from_a_dataset(tmp_path: Path, demonstrations_file: Path) -> None:
    table = rl.Demonstrations.load(demonstrations_file)
    write_demonstrations(
        table, tmp_path / "d", fps=10.0, facts={"expert": {"played": 40, "solved": 30}}
    )
    same = load_demonstrations(tmp_path / "d")
    for name in ("action", "reward", "terminated", "episode"):
        assert torch.equal(getattr(same, name), getattr(table, name)), name
    assert torch.equal(same.obs["state"], table.obs["state"])
    assert (same.tasks, same.reward_definition) == (table.tasks, table.reward_definition)
    facts = json.loads((tmp_path / "d/meta/pitune.json").read_text())
    assert facts["expert"] == {"played": 40, "solved": 30}


def test_preprocessed_demonstrations_are_refused(
    tmp_path: Path, demonstrations_file: Path, tiny_policy: Any
) -> None:
    table = rl.Demonstrations.load(demonstrations_file).preprocess(tiny_policy())
    with pytest.raises(ValueError, match=r"have no states but \['model_input'\]"):
        write_demonstrations(table, tmp_path / "d", fps=10.0)


def test_the_codec_of_lerobot_is_read(tmp_path: Path) -> None:
    table = episodes((12,), size=64)
    config = RecordConfig(codec="libsvtav1", crf=30)
    with DatasetWriter(tmp_path / "d", fps=20.0, config=config) as writer:
        writer.add(table[0])
    frames = EpisodeDataset(tmp_path / "d", cameras=["front"]).frames(0, 2, 9)
    difference = frames.obs["image/front"].int() - table[0].pictures["front"][2:9].int()
    assert difference.abs().float().mean() < 5


def test_an_episode_counts_its_frames() -> None:
    episode = RecordedEpisode(state=torch.zeros(4, 1), action=torch.zeros(4, 1), task="wait")
    assert len(episode) == 4
    with pytest.raises(ValueError, match=r"an episode must have frames"):
        RecordedEpisode(state=torch.zeros(0, 1), action=torch.zeros(0, 1), task="wait").check()
