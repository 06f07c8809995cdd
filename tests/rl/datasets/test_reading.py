"""Reading LeRobot datasets: both versions, the names of features, and damaged files."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot_datasets import LENGTHS, WORDS, episodes, recorded, version_2

from pitune.rl.datasets.columns import RecordedEpisode
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.dataset import EpisodeDataset, Frames
from pitune.rl.datasets.demonstrations import (
    demonstrations_and_tasks,
    demonstrations_for,
    load_demonstrations,
)
from pitune.rl.datasets.layout import find_dataset

DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def table() -> list[RecordedEpisode]:
    return episodes()


def everything(data: EpisodeDataset) -> list[Frames]:
    return [data.frames(i, 0, data.episodes[i].length) for i in range(len(data.episodes))]


def check_equal(found: list[Frames], table: list[RecordedEpisode], data: EpisodeDataset) -> None:
    """Assert that the frames are those that were written, bit for bit."""
    assert len(found) == len(table)
    for frames, episode in zip(found, table, strict=True):
        assert torch.equal(frames.obs["state"], episode.state)
        assert torch.equal(frames.action, episode.action)
        assert torch.equal(frames.obs["image/front"], episode.pictures["front"])
        assert {data.tasks[task] for task in frames.obs["task_id"].tolist()} == {episode.task}


def test_version_3_gives_the_recorded_frames(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    data = EpisodeDataset(recorded(tmp_path / "d", table), cameras=["front"])
    assert (data.tasks, data.num_frames, data.metadata.fps) == (WORDS, sum(LENGTHS), 20.0)
    found = everything(data)
    check_equal(found, table, data)
    assert found[0].reward is not None
    assert torch.equal(found[0].reward, table[0].signals["next.reward"])
    assert found[0].terminated is not None
    assert found[0].terminated.tolist() == [False] * 6 + [True]


def test_version_2_gives_the_recorded_frames(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    data = EpisodeDataset(version_2(tmp_path / "d", table), cameras=["front"])
    assert (data.tasks, data.metadata.version) == (WORDS, "v2.1")
    found = everything(data)
    check_equal(found, table, data)
    assert found[0].reward is None


def test_a_part_of_an_episode_is_read(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    for kind in ("image", "video"):
        data = EpisodeDataset(recorded(tmp_path / kind, table, kind), cameras=["front"])
        part, whole = data.frames(2, 3, 6), data.frames(2, 0, 9)
        assert torch.equal(part.obs["image/front"], whole.obs["image/front"][3:6])
        assert torch.equal(part.action, table[2].action[3:6])
        assert torch.equal(data.actions(2, 4, 9), table[2].action[4:9])


def test_a_video_gives_its_pictures_up_to_the_codec(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    data = EpisodeDataset(recorded(tmp_path / "d", table, "video"), cameras=["front"])
    for frames, episode in zip(everything(data), table, strict=True):
        distance = (frames.obs["image/front"].int() - episode.pictures["front"].int()).abs()
        assert distance.float().mean() < 3
        # a neighboring frame is farther away
        shifted = (frames.obs["image/front"][1:].int() - episode.pictures["front"][:-1].int()).abs()
        assert shifted.float().mean() > 4 * distance.float().mean()


def test_features_are_joined_in_the_given_order(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    folder = recorded(tmp_path / "d", table)
    config = DataConfig(state=("action", "observation.state"), action=("next.reward", "action"))
    data = EpisodeDataset(folder, config)
    assert (data.state_dim, data.action_dim) == (5, 3)
    frames = data.frames(1, 0, 5)
    assert torch.equal(frames.obs["state"], torch.cat([table[1].action, table[1].state], -1))
    reward = table[1].signals["next.reward"][:, None]
    assert torch.equal(frames.action, torch.cat([reward, table[1].action], -1))


def test_a_camera_has_the_feature_of_its_pair(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)
    config = DataConfig(cameras=("base=observation.images.front",))
    frames = EpisodeDataset(folder, config, ["base"]).frames(0, 0, 7)
    assert torch.equal(frames.obs["image/base"], table[0].pictures["front"])


def test_a_missing_feature_is_named_with_the_nearest_ones(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    folder = recorded(tmp_path / "d", table)
    with pytest.raises(ValueError, match=r"'observation.images.fron' .*camera 'fron'; did you"):
        EpisodeDataset(folder, cameras=["fron"])
    with pytest.raises(ValueError, match=r"no numbers 'observation.sate' \(data.state\); did you"):
        EpisodeDataset(folder, DataConfig(state=("observation.sate",)))
    with pytest.raises(ValueError, match=r"no numbers 'observation.images.front'"):
        EpisodeDataset(folder, DataConfig(action=("observation.images.front",)))


@pytest.mark.parametrize("pair", ["front", "=observation.images.front", "front="])
def test_a_pair_without_a_side_is_refused(pair: str) -> None:
    with pytest.raises(ValueError, match=r"cameras='.*' must be camera=feature"):
        DataConfig(cameras=(pair,))


def test_no_feature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state=\(\) must name at least one feature"):
        DataConfig(state=())


def test_another_robot_is_refused(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    data = EpisodeDataset(recorded(tmp_path / "d", table))
    with pytest.raises(ValueError, match=r"the action in .* has 2 dimensions .*policy's has 7"):
        data.check_policy(3, 7)


def failed(episode: RecordedEpisode) -> RecordedEpisode:
    return RecordedEpisode(**{**vars(episode), "success": False})


def test_failures_are_left_out_unless_they_are_asked_for(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    folder = recorded(tmp_path / "d", [table[0], failed(table[1]), *table[2:]])
    assert [episode.number for episode in EpisodeDataset(folder).episodes] == [0, 2, 3]
    assert len(EpisodeDataset(folder, DataConfig(episodes="all")).episodes) == 4
    assert len(EpisodeDataset(folder, DataConfig(max_episodes=2)).episodes) == 2
    folder = recorded(tmp_path / "failures", [failed(episode) for episode in table])
    with pytest.raises(ValueError, match=r"has 4 episodes and no successful one; pass --data"):
        EpisodeDataset(folder)


def test_success_of_other_programs_is_read_from_the_frames(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    """lerobot has no success of an episode, but may have that of a frame."""
    rows = []
    for number, episode in enumerate(table):
        solved = torch.zeros(len(episode), dtype=torch.bool)
        solved[2] = number != 1
        signals = {"next.success": solved}
        rows.append(RecordedEpisode(**{**vars(episode), "success": None, "signals": signals}))
    data = EpisodeDataset(recorded(tmp_path / "d", rows))
    assert [episode.number for episode in data.episodes] == [0, 2, 3]


def test_a_name_that_is_not_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"no demonstrations at .*nothing, and no folder of that name here; pass a file",
    ):
        find_dataset(Path("nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty is no LeRobot dataset: it has no meta"):
        find_dataset(tmp_path / "empty")


def test_a_hub_name_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def download(name: str, repo_type: str) -> str:
        asked.append((name, repo_type))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_dataset(Path("lerobot/pusht")) == tmp_path / "snapshot"
    assert asked == [("lerobot/pusht", "dataset")]


def test_a_hub_name_without_a_network_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(name: str, repo_type: str) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"at lerobot/pusht, .*ConnectionError"):
        find_dataset(Path("lerobot/pusht"))


def test_a_hub_name_without_its_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "huggingface_hub":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FileNotFoundError, match=r"run pip install huggingface_hub"):
        find_dataset(Path("lerobot/pusht"))


def change_info(folder: Path, **changes: Any) -> None:
    file = folder / "meta/info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_another_version_is_refused(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)
    change_info(folder, codebase_version="v1.6")
    with pytest.raises(ValueError, match=r"codebase_version='v1.6'; valid: v2.1, v3.0"):
        EpisodeDataset(folder)


def test_incomplete_metadata_is_refused(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)
    shutil.rmtree(folder / "meta/episodes")
    with pytest.raises(FileNotFoundError, match=r"meta/episodes holds no parquet file"):
        EpisodeDataset(folder)
    change_info(folder, features={})
    with pytest.raises(ValueError, match=r"info.json lacks \['features'\]"):
        EpisodeDataset(folder)
    (folder / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info.json is no JSON file"):
        EpisodeDataset(folder)


def test_damaged_lines_of_version_2_are_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = version_2(tmp_path / "d", table)
    file = folder / "meta/episodes.jsonl"
    file.write_text(file.read_text() + '{"episode')
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 5 is no JSON object"):
        EpisodeDataset(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"episodes.jsonl is missing"):
        EpisodeDataset(folder)


def test_a_truncated_parquet_file_is_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)
    file = folder / DATA
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is damaged or cut off"):
        EpisodeDataset(folder).frames(0, 0, 1)


def test_a_missing_file_is_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table, "video")
    data = EpisodeDataset(folder, cameras=["front"])
    video = folder / "videos/observation.images.front/chunk-000/file-000.mp4"
    video.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(video))} is missing"):
        data.frames(0, 0, 1)
    (folder / DATA).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{DATA} is missing"):
        data.frames(0, 0, 1)


def test_a_damaged_video_is_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table, "video")
    data = EpisodeDataset(folder, cameras=["front"])
    video = folder / "videos/observation.images.front/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{re.escape(str(video))} is damaged or cut off"):
        data.frames(0, 0, 1)


def test_a_video_that_is_too_short_is_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table, "video")
    short = recorded(tmp_path / "short", table[:1], "video")
    video = "videos/observation.images.front/chunk-000/file-000.mp4"
    shutil.copy(short / video, folder / video)
    with pytest.raises(ValueError, match=r"has no frame at .* within 0.001 s"):
        EpisodeDataset(folder, cameras=["front"]).frames(3, 0, 4)


def rewrite(file: Path, name: str, change: Any) -> None:
    """Change the values of a column, as a list."""
    rows = pq.read_table(file)
    values = rows.column(name).to_pylist()
    change(values)
    place = rows.column_names.index(name)
    pq.write_table(rows.set_column(place, name, pa.array(values)), file)


def test_nan_is_named_with_its_row(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)

    def spoil(values: list[list[float]]) -> None:
        values[9] = [1.0, float("nan")]

    rewrite(folder / DATA, "action", spoil)
    data = EpisodeDataset(folder)
    assert len(data.frames(0, 0, 7)) == 7
    with pytest.raises(ValueError, match=r"file-000.parquet, row 9: 'action' is not finite"):
        data.frames(1, 0, 5)


def test_other_dimensions_are_named_with_their_row(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    folder = recorded(tmp_path / "d", table)

    def spoil(values: list[list[float]]) -> None:
        values[3] = [1.0]

    rewrite(folder / DATA, "action", spoil)
    with pytest.raises(ValueError, match=r"row 3: 'action' has 1 entries, but 2 are declared"):
        EpisodeDataset(folder).frames(0, 0, 7)


def test_empty_numbers_are_named_with_their_row(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    folder = recorded(tmp_path / "d", table)

    def spoil(values: list[list[float] | None]) -> None:
        values[4] = None

    rewrite(folder / DATA, "observation.state", spoil)
    with pytest.raises(ValueError, match=r"row 4: 'observation.state' is empty"):
        EpisodeDataset(folder).frames(0, 0, 7)


def test_rows_of_another_episode_are_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)

    def spoil(values: list[int]) -> None:
        values[8] = 3

    rewrite(folder / DATA, "frame_index", spoil)
    message = r"row 8: found frame 3 of episode 1, but the metadata place frame 1 of episode 1"
    with pytest.raises(ValueError, match=message):
        EpisodeDataset(folder).frames(1, 0, 5)


def test_missing_rows_and_columns_are_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)
    file = folder / DATA
    rows = pq.read_table(file)
    pq.write_table(rows.slice(0, 20), file)
    with pytest.raises(ValueError, match=r"has 20 rows, but the metadata place frames in rows 21"):
        EpisodeDataset(folder).frames(3, 0, 4)
    pq.write_table(rows.drop_columns(["action"]), file)
    with pytest.raises(ValueError, match=r"lacks the columns \['action'\]"):
        EpisodeDataset(folder).frames(0, 0, 4)


def test_a_damaged_picture_is_named_with_its_row(
    tmp_path: Path, table: list[RecordedEpisode]
) -> None:
    folder = recorded(tmp_path / "d", table)
    for broken, message in (
        ({"bytes": b"no picture", "path": None}, r"row 2: the picture .* is damaged"),
        ({"bytes": None, "path": "away.png"}, r"row 2: .* holds no picture"),
    ):

        def spoil(values: list[Any], broken: Any = broken) -> None:
            values[2] = broken

        rewrite(folder / DATA, "observation.images.front", spoil)
        with pytest.raises(ValueError, match=message):
            EpisodeDataset(folder, cameras=["front"]).frames(0, 0, 7)


def test_an_unknown_task_is_named(tmp_path: Path, table: list[RecordedEpisode]) -> None:
    folder = recorded(tmp_path / "d", table)

    def spoil(values: list[int]) -> None:
        values[1] = 5

    rewrite(folder / DATA, "task_index", spoil)
    with pytest.raises(ValueError, match=r"task_index=5, but the dataset has 2 tasks"):
        EpisodeDataset(folder).frames(0, 0, 7)


def test_tasks_come_from_the_same_reading_as_the_observations(
    tmp_path: Path,
    table: list[RecordedEpisode],
    tiny_policy: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = recorded(tmp_path / "d", table)
    recorded_tasks = load_demonstrations(folder).obs["task_id"]
    read, frames = [], EpisodeDataset.frames

    def counted(self: EpisodeDataset, number: int, first: int, num: int) -> Any:
        read.append((number, num))
        return frames(self, number, first, num)

    monkeypatch.setattr(EpisodeDataset, "frames", counted)
    found, task = demonstrations_and_tasks(tiny_policy(3, 2), folder)
    assert isinstance(recorded_tasks, torch.Tensor)
    assert torch.equal(task, recorded_tasks)
    assert len(task.unique()) == 2
    assert found.obs.keys() == {"model_input"}
    # a frame for the size of all, and each episode once
    assert read == [(0, 1), *enumerate(LENGTHS)]


def test_failures_and_corrections_keep_their_marks(
    tmp_path: Path, table: list[RecordedEpisode], tiny_policy: Callable
) -> None:
    name = "complementary_info.is_intervention"
    marked = [
        replace(
            episode,
            success=number != 1,
            signals={**episode.signals, name: torch.arange(len(episode.action)) < 2},
        )
        for number, episode in enumerate(table)
    ]
    folder = recorded(tmp_path / "d", marked)
    policy = tiny_policy(3, 2)
    every = demonstrations_for(policy, folder, DataConfig(episodes="all"))
    lengths = torch.tensor(LENGTHS)
    solved = torch.tensor([number != 1 for number in range(len(LENGTHS))])
    assert every.solved().tolist() == solved.repeat_interleave(lengths).tolist()
    assert every.intervention is not None
    assert int(every.intervention.sum()) == 2 * len(LENGTHS)
    assert demonstrations_for(policy, folder).solved().all()
