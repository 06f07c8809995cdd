"""`segments`: the rows of a replay memory, written once and listed by checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from pitune import rl
from pitune.experiments.runs.folder import segments as segments_module
from pitune.experiments.runs.folder.checkpoints import damage_of
from pitune.experiments.runs.folder.segments import Segments, fault, write_index
from pitune.experiments.runs.run import Run
from pitune.rl.experience.replay import Replay

CONFIG = {"seed": 0, "algorithm_name": "dsrl"}


def push(memory: Replay, num: int) -> None:
    first = memory.num_pushed
    numbers = torch.arange(first, first + num)
    state = numbers[:, None].float().expand(-1, 3)
    memory.push(TensorDict({"number": numbers, "next": {"state": state}}, batch_size=[num]))


def files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "replay").iterdir())


def test_only_new_rows_are_written(tmp_path: Path) -> None:
    segments, memory = Segments(tmp_path), Replay(10)
    sizes = []
    for num in (4, 0, 3, 2):
        push(memory, num)
        index = segments.write({"replay": memory})["replay"]["segments"]
        sizes.append([(segment.first, segment.last) for segment in index])
    assert sizes == [[(0, 4)], [(0, 4)], [(0, 4), (4, 7)], [(0, 4), (4, 7), (7, 9)]]
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize("pushes", [[], [0], [4, 4, 4], [10, 1], [3, 25, 4, 4, 4]])
def test_a_memory_comes_back_and_goes_on_alike(pushes: list[int], tmp_path: Path) -> None:
    segments, memory = Segments(tmp_path), Replay(10)
    for number, num in enumerate(pushes):
        push(memory, num)
        checkpoint = tmp_path / f"checkpoint_{number:06d}"
        checkpoint.mkdir()
        write_index(checkpoint, segments.write({"replay": memory}))
        # another process goes on from there each time
        segments, again = Segments(tmp_path), Replay(10)
        assert fault(checkpoint, deep=True) is None
        segments.load(checkpoint, {"replay": again})
        assert len(again) == len(memory)
        assert again.writer_state() == memory.writer_state()
        if len(memory):
            assert (again.all() == memory.all()).all()
        memory = again


def test_files_that_no_folder_lists_are_removed(tmp_path: Path) -> None:
    segments, memory = Segments(tmp_path), Replay(10)
    for number in range(3):
        push(memory, 6)
        checkpoint = tmp_path / f"checkpoint_{number:06d}"
        checkpoint.mkdir()
        write_index(checkpoint, segments.write({"replay": memory}))
    (tmp_path / "replay" / "notes.txt").write_text("of the user")
    (tmp_path / "replay" / "tmp_replay_000000000018_000000000024.safetensors").write_text("")
    segments.remove_unlisted()
    assert len(files(tmp_path)) == 4  # three files and the user's
    for number in range(2):
        (tmp_path / f"checkpoint_{number:06d}" / "replay.json").unlink()
    segments.remove_unlisted()
    # the ring of ten holds rows 8 to 18
    names = ["replay_000000000006_000000000012", "replay_000000000012_000000000018"]
    assert files(tmp_path) == ["notes.txt", *(f"{name}.safetensors" for name in names)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), r"replay/replay_0+_0+5\.safetensors is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), r"has [\d,]+ of [\d,]+ bytes"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x99"),
            r"has changed since it was written",
        ),
    ],
)
def test_damage_is_damage_of_the_checkpoint(
    damage: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    tiny_policy: Callable,
    small_preset: Callable,
    capsys: pytest.CaptureFixture,
) -> None:
    algorithm = rl.make(small_preset("dsrl"), tiny_policy())
    memory = algorithm.memories["replay"]
    assert isinstance(memory, Replay)
    run = Run.create(tmp_path / "run", CONFIG, "off")
    for iteration in (1, 2):
        if iteration == 2:
            push(memory, 5)
        run.log(iteration, {"loss": 0.5})
        run.save(iteration, algorithm, {"rank": -iteration})
    newest = run.checkpoints()[-1]
    assert damage_of(newest, deep=True) is None
    (file,) = (run.folder / "replay").iterdir()
    damage(file)
    found = damage_of(newest, deep=True)
    assert found is not None
    other = rl.make(small_preset("dsrl"), tiny_policy())
    assert Run.resume(run.folder, CONFIG, "off").load_latest(other)["iteration"] == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{newest}: {found}, so checkpoint_000001 is used" in shown
    assert re.search(message, found)


def test_rows_of_an_old_checkpoint_are_read_from_its_training_state(
    tmp_path: Path, tiny_policy: Callable, small_preset: Callable
) -> None:
    first = rl.make(small_preset("dsrl"), tiny_policy())
    memory = first.memories["replay"]
    assert isinstance(memory, Replay)
    push(memory, 5)
    state = first.training_state(with_memories=False)
    state["extra"]["off_policy"]["replay"] = memory.state()  # where pitune 0.4 kept them
    second = rl.make(small_preset("dsrl"), tiny_policy())
    second.load_training_state(state)
    again = second.memories["replay"]
    assert isinstance(again, Replay)
    assert (again.all() == memory.all()).all()


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(rows: dict, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segments_module, "save_file", failing)
    memory = Replay(10)
    push(memory, 4)
    with pytest.raises(OSError, match="No space left"):
        Segments(tmp_path).write({"replay": memory})
    assert files(tmp_path) == []


def test_the_list_is_json(tmp_path: Path) -> None:
    segments, memory = Segments(tmp_path), Replay(10)
    push(memory, 12)
    write_index(tmp_path, segments.write({"replay": memory}))
    saved = json.loads((tmp_path / "replay.json").read_text())["replay"]
    assert saved["num"] == 10
    assert saved["writer"]["_write_count"] == 10
