"""The checkpoints of a run: files of a user beside them, damage, and kills in their writing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from forks import Child
from pitune import rl
from pitune.experiments.runs.folder.checkpoints import (
    clean,
    damage_of,
    own_checkpoints,
    remove,
)
from pitune.experiments.runs.folder.lock import unlock
from pitune.experiments.runs.run import Run

CONFIG = {"seed": 0, "algorithm_name": "ppo"}
FILESYSTEM = ("rename", "replace", "mkdir", "rmdir", "unlink", "remove")
"""Functions of `os` by which everything that appears or disappears does so."""


@pytest.fixture
def algorithm(tiny_policy: Callable, small_preset: Callable) -> rl.Algorithm:
    torch.manual_seed(0)
    return rl.make(small_preset("ppo"), tiny_policy())


@pytest.fixture
def run(tmp_path: Path, algorithm: rl.Algorithm) -> Run:
    """Return a run with the checkpoints 2 and 4, of which the first is the best."""
    run = Run.create(tmp_path / "run", CONFIG, "off")
    for iteration in range(1, 5):
        run.log(iteration, {"loss": 1 / iteration})
        if iteration % 2 == 0:
            run.save(iteration, algorithm, {"success_rate": 1 / iteration})
    return run


def names(folder: Path) -> list[str]:
    return [path.name for path in own_checkpoints(folder)]


# A user's files


def copy_to(name: str) -> Callable[[Path], Any]:
    return lambda folder: shutil.copytree(folder / "checkpoint_000002", folder / name)


def archive(folder: Path) -> None:
    with tarfile.open(folder / "checkpoint_000002.tar.gz", "w:gz") as file:
        file.add(folder / "checkpoint_000002", "checkpoint_000002")


OTHER_DIGITS = "checkpoint_" + "\uff10" * 5 + "\uff12"  # 2 in full-width digits
BESIDE: dict[str, Callable[[Path], Any]] = {
    "checkpoint_best": copy_to("checkpoint_best"),
    "checkpoint_000002_backup": copy_to("checkpoint_000002_backup"),
    "checkpoint_000002 copy": copy_to("checkpoint_000002 copy"),
    "checkpoint_000002.bak": copy_to("checkpoint_000002.bak"),
    "checkpoint_20991231": copy_to("checkpoint_20991231"),  # a date
    "checkpoint_2": copy_to("checkpoint_2"),
    OTHER_DIGITS: copy_to(OTHER_DIGITS),
    "checkpoint_000002.tar.gz": archive,
    "checkpoint_notes.txt": lambda folder: (folder / "checkpoint_notes.txt").write_text("best"),
    "checkpoint_000020": lambda folder: (folder / "checkpoint_000020").write_text("a file"),
    "checkpoint_latest": lambda f: (f / "checkpoint_latest").symlink_to("checkpoint_000002"),
    "checkpoint_000030": lambda f: (f / "checkpoint_000030").symlink_to("checkpoint_000002"),
    "checkpoint_000040": lambda f: (f / "checkpoint_000040").symlink_to("nowhere"),
    "checkpoint_": lambda folder: (folder / "checkpoint_").mkdir(),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_users_copy_archive_or_link_is_neither_used_nor_removed(
    name: str, run: Run, algorithm: rl.Algorithm
) -> None:
    BESIDE[name](run.folder)
    assert names(run.folder) == ["checkpoint_000002", "checkpoint_000004"]
    assert run.best_checkpoint().name == "checkpoint_000002"
    for iteration in (5, 6, 7):
        run.log(iteration, {"loss": 0.0})
        run.save(iteration, algorithm, {"success_rate": iteration / 10})
    assert names(run.folder) == ["checkpoint_000007"]
    assert os.path.lexists(run.folder / name)
    unlock(run.folder)
    again = Run.resume(run.folder, CONFIG, "off")
    assert again.load_latest(algorithm)["iteration"] == 7
    assert os.path.lexists(run.folder / name)


@pytest.mark.parametrize("make", [Path.write_text, Path.symlink_to])
def test_a_file_or_link_with_the_name_of_the_next_checkpoint_is_moved_aside(
    make: Callable, run: Run, algorithm: rl.Algorithm, capsys: pytest.CaptureFixture
) -> None:
    make(run.folder / "checkpoint_000006", "checkpoint_000002")
    run.save(6, algorithm, {"success_rate": 0.1})
    assert names(run.folder) == ["checkpoint_000002", "checkpoint_000006"]
    assert os.path.lexists(run.folder / "other_checkpoint_000006")
    assert "it is no checkpoint of this run; it is kept as other_" in capsys.readouterr().err


# Damage


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


PARTS = ("policy.safetensors", "policy.json", "training.pt", "progress.json")
DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
    "flipped": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("old", [False, True], ids=["with checksums", "of an older version"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(
    kind: str,
    part: str,
    old: bool,
    run: Run,
    algorithm: rl.Algorithm,
    capsys: pytest.CaptureFixture,
) -> None:
    newest = run.folder / "checkpoint_000004"
    if old:
        if (kind, part.partition(".")[2]) in (("flipped", "safetensors"), ("flipped", "pt")):
            pytest.skip("a changed weight cannot be noticed without a checksum")
        for name in ("checksums.json", "metrics.csv"):
            (newest / name).unlink()
    DAMAGE[kind](newest / part)
    assert Run.resume(run.folder, CONFIG, "off").load_latest(algorithm)["iteration"] == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"warning: {newest}: " in shown
    assert part in shown
    assert "so checkpoint_000002 is used instead; it is kept as damaged_checkpoint_000004" in shown
    assert (run.folder / "damaged_checkpoint_000004").is_dir()
    assert [row["iteration"] for row in run.rows] == [1, 2]


@pytest.mark.parametrize(
    "progress", [b"", b"null", b"[]", b"{}", b'{"iteration": "4"}', b'{"iteration": 4', b"\xff"]
)
def test_broken_progress_of_an_older_version_is_named(
    progress: bytes, run: Run, algorithm: rl.Algorithm, capsys: pytest.CaptureFixture
) -> None:
    newest = run.folder / "checkpoint_000004"
    (newest / "checksums.json").unlink()
    (newest / "progress.json").write_bytes(progress)
    assert run.load_latest(algorithm)["iteration"] == 2
    assert "progress.json is " in capsys.readouterr().err


def test_entries_that_the_loop_needs_are_named(
    run: Run, algorithm: rl.Algorithm, capsys: pytest.CaptureFixture
) -> None:
    newest = run.folder / "checkpoint_000002"
    with pytest.raises(ValueError, match=r"no checkpoint of the run is whole: .*4: progress\."):
        run.load_latest(algorithm, needed=("success_rate", "seconds"))
    assert newest.is_dir()  # nothing is moved where nothing is whole
    assert capsys.readouterr().err == ""


def test_without_a_whole_checkpoint_each_fault_is_named(run: Run, algorithm: rl.Algorithm) -> None:
    cut(run.folder / "checkpoint_000004" / "training.pt")
    (run.folder / "checkpoint_000002" / "policy.json").unlink()
    message = r"whole: .*4: training\.pt has .*; .*2: policy\.json is missing\. Restore one"
    with pytest.raises(ValueError, match=message):
        run.load_latest(algorithm)
    assert names(run.folder) == ["checkpoint_000002", "checkpoint_000004"]


def test_a_damaged_best_checkpoint_is_set_aside_and_not_removed(
    run: Run, algorithm: rl.Algorithm
) -> None:
    (run.folder / "checkpoint_000002" / "progress.json").write_text("{")
    run.save(6, algorithm, {"success_rate": 0.9})
    assert names(run.folder) == ["checkpoint_000006"]
    assert (run.folder / "damaged_checkpoint_000002" / "policy.safetensors").is_file()


@pytest.mark.parametrize("name", ["checkpoint_000009", "checkpoint_20260131"])
@pytest.mark.parametrize("files", [[], ["policy.json", "policy.safetensors"]])
def test_a_later_folder_that_is_not_whole_does_not_take_the_place_of_the_latest(
    name: str, files: list[str], run: Run, algorithm: rl.Algorithm
) -> None:
    (run.folder / name).mkdir()
    for file in files:
        shutil.copy(run.folder / "checkpoint_000002" / file, run.folder / name)
    run.save(6, algorithm, {"success_rate": 0.1})
    assert names(run.folder) == ["checkpoint_000002", "checkpoint_000006"]
    assert sorted(p.name for p in (run.folder / f"damaged_{name}").iterdir()) == files
    assert run.saved_iteration() == 6
    assert run.load_latest(algorithm)["iteration"] == 6


def test_rows_come_from_the_checkpoint_whatever_happened_to_the_table(
    run: Run, algorithm: rl.Algorithm, capsys: pytest.CaptureFixture
) -> None:
    rows = [dict(row) for row in run.rows]
    file = run.folder / "metrics.csv"
    for content in (None, b"", b"iteration,loss\n1,9.0\n2,what\n", file.read_bytes()[:-9]):
        file.unlink(missing_ok=True)
        if content is not None:
            file.write_bytes(content)
        again = Run.resume(run.folder, CONFIG, "off")
        again.load_latest(algorithm)
        assert again.rows == rows
        assert "was not as written; its rows are those of" in capsys.readouterr().err
    Run.resume(run.folder, CONFIG, "off").load_latest(algorithm)
    assert capsys.readouterr().err == ""


# Kills


def killing(call: int) -> None:
    """Kill this process at the n-th call that changes the file system, counted from 1."""
    count = iter(range(1, 10_000))

    def counted(original: Callable) -> Callable:
        def function(*args: Any, **kwargs: Any) -> Any:
            if next(count) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return function

    for name in FILESYSTEM:
        setattr(os, name, counted(getattr(os, name)))


def test_a_kill_at_each_step_of_writing_and_pruning_loses_nothing(
    run: Run, algorithm: rl.Algorithm, tmp_path: Path
) -> None:
    """The run is killed before each call that changes its folder, and goes on from it."""
    unlock(run.folder)
    kills = 0
    for call in range(1, 100):
        folder = tmp_path / f"killed_{call}"
        shutil.copytree(run.folder, folder)

        def save(folder: Path = folder, call: int = call) -> None:
            resumed = Run.resume(folder, CONFIG, "off")
            resumed.load_latest(algorithm)
            resumed.log(5, {"loss": 0.2, "success_rate": 0.9})
            killing(call)
            resumed.save(5, algorithm, {"success_rate": 0.9})  # the best: 2 and 4 are removed
            resumed.finish({"iterations": 5})

        code = Child(save, tmp_path / "log").wait()
        if code == 0:
            break
        kills += 1
        assert code == -signal.SIGKILL
        again = Run.resume(folder, CONFIG, "off")
        assert again.load_latest(algorithm)["iteration"] in (4, 5)
        assert all(damage_of(path, deep=True) is None for path in own_checkpoints(folder))
        again.log(6, {"loss": 0.1})
        again.save(6, algorithm, {"success_rate": 0.1})
        left = {path.name for path in folder.iterdir()}
        kept = {"config.json", "metrics.csv", "run.lock", "summary.json", *names(folder)}
        assert left <= kept, call
        assert "checkpoint_000006" in left
        unlock(folder)
    assert kills >= 10
    assert names(folder) == ["checkpoint_000005"]


def test_a_complete_checkpoint_that_lacked_only_its_name_gets_it(run: Run) -> None:
    newest = run.folder / "checkpoint_000004"
    newest.rename(run.folder / "tmp_checkpoint_000004_123")
    clean(run.folder)
    assert names(run.folder) == ["checkpoint_000002", "checkpoint_000004"]
    newest.rename(run.folder / "tmp_checkpoint_000004_123")
    cut(run.folder / "tmp_checkpoint_000004_123" / "training.pt")
    clean(run.folder)
    assert names(run.folder) == ["checkpoint_000002"]


@pytest.mark.parametrize(
    ("name", "is_ours"),
    [
        ("tmp_checkpoint_000004_77", True),
        (".removed_checkpoint_000002_77", True),
        ("tmp_initial_policy_77", True),
        ("tmp_metrics.csv", True),
        ("tmp_config.json", True),
        ("tmp_checkpoint_000004_mine", False),
        ("tmp_notes", False),
        ("removed_checkpoint_000002_77", False),
        ("checkpoint_000002_77", False),
    ],
)
@pytest.mark.parametrize("as_folder", [True, False])
def test_only_the_runs_own_leftovers_are_cleaned(
    name: str, is_ours: bool, as_folder: bool, run: Run
) -> None:
    path = run.folder / name
    path.mkdir() if as_folder else path.write_text("x")
    unlock(run.folder)
    Run.resume(run.folder, CONFIG, "off")
    assert path.exists() is not is_ours


def test_a_checkpoint_that_cannot_be_removed_is_noted_and_kills_nothing(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def busy(*_: object) -> None:
        raise OSError("device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    remove(run.folder / "checkpoint_000002")
    assert "checkpoint_000002 cannot be removed (device or " in capsys.readouterr().err
    assert names(run.folder) == ["checkpoint_000002", "checkpoint_000004"]


def test_progress_says_whether_the_weights_have_changed(run: Run, algorithm: rl.Algorithm) -> None:
    assert not run.has_changed()
    with torch.no_grad():
        next(iter(algorithm.actor.policy.parameters())).add_(1.0)
    run.save(6, algorithm, {"success_rate": 0.1})
    assert run.has_changed()
    again = Run.resume(run.folder, CONFIG, "off")
    again.load_latest(algorithm)
    again.save(8, algorithm, {"success_rate": 0.1})
    assert again.has_changed()
    assert json.loads((run.folder / "checkpoint_000008" / "progress.json").read_text())["changed"]
