"""A full disk, a read-only one and a loss that is not finite: the last good state stays."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import rows

from forks import Child
from pitune.experiments.command_line.errors import exit_with_message
from pitune.experiments.runs.folder.checkpoints import damage_of, own_checkpoints
from pitune.experiments.runs.folder.disk import as_disk_error
from pitune.experiments.runs.folder.metrics_log import MetricsLog
from pitune.experiments.runs.signals import exit_on_signal
from pitune.experiments.train import TrainConfig, Trainer, train
from pitune.rl.algorithms.dsrl import DSRL


@pytest.fixture
def config(run_of: Callable[..., TrainConfig]) -> TrainConfig:
    return run_of("dsrl", num_iterations=8, eval_every=4, save_minutes=1e-9)


def command(config: TrainConfig, before: Callable[[Trainer], None]) -> None:
    """Train as the command does, with something done before each iteration."""
    original = Trainer._iterate

    def iterate(trainer: Trainer) -> dict[str, float]:
        before(trainer)
        return original(trainer)

    setattr(Trainer, "_iterate", iterate)  # noqa: B010
    with exit_with_message(), exit_on_signal():
        train(config)


def text_of(child: Child) -> str:
    return " ".join(child.output().split())


def assert_goes_on(config: TrainConfig, tmp_path: Path) -> None:
    """The run goes on from a whole checkpoint, with the numbers of an uninterrupted one."""
    assert damage_of(own_checkpoints(config.out)[-1], deep=True) is None
    assert not list(config.out.rglob("tmp_*"))
    train(replace(config, resume=True))
    train(replace(config, out=tmp_path / "whole"))
    assert rows(config.out) == rows(tmp_path / "whole")


@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_a_limit_of_the_file_size_leaves_the_last_checkpoint(
    limit: int, config: TrainConfig, tmp_path: Path
) -> None:
    """The smallest limit already stops the rows, the others the files of a checkpoint."""

    def limited(trainer: Trainer) -> None:
        if trainer.iteration == 5:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    child = Child(lambda: command(config, limited), tmp_path / "log")
    assert child.wait() == 1, child.output()
    shown = text_of(child)
    assert "checkpoint_000005 is whole; `pitune train --resume" in shown
    assert "file too large; raise the limit of file sizes" in shown or "input/output error" in shown
    assert "Traceback" not in shown
    assert_goes_on(config, tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 4 MB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("free", [0, 30_000, 60_000])
def test_a_full_disk_leaves_the_last_checkpoint(
    free: int, config: TrainConfig, small_disk: Path, tmp_path: Path
) -> None:
    config = replace(config, out=small_disk / "run")
    ballast = small_disk / "ballast"

    def filled(trainer: Trainer) -> None:
        if trainer.iteration == 5:
            status = os.statvfs(small_disk)
            ballast.write_bytes(b"0" * max(0, status.f_bavail * status.f_frsize - free))

    child = Child(lambda: command(config, filled), tmp_path / "log")
    assert child.wait() == 1, child.output()
    shown = text_of(child)
    assert " is whole; `pitune train --resume" in shown
    assert "no space left on device; free some space there" in shown
    assert "Traceback" not in shown
    ballast.unlink()
    assert_goes_on(config, tmp_path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_becomes_read_only_leaves_the_last_checkpoint(
    number: int, config: TrainConfig, tmp_path: Path
) -> None:
    original = MetricsLog._append

    def append(log: MetricsLog, line: bytes) -> None:
        if line.startswith(b"6,"):
            raise OSError(number, os.strerror(number), str(log.file))
        original(log, line)

    def failing() -> None:
        setattr(MetricsLog, "_append", append)  # noqa: B010
        command(config, lambda _: None)

    child = Child(failing, tmp_path / "log")
    assert child.wait() == 1
    assert "checkpoint_000005 is whole; `pitune train --resume" in text_of(child)
    assert_goes_on(config, tmp_path)


def test_errors_of_libraries_are_errors_of_the_disk(tmp_path: Path) -> None:
    for error in (
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ):
        found = as_disk_error(error, tmp_path)
        assert found is not None
        assert found.errno == errno.ENOSPC
    torch_error = RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter")
    found = as_disk_error(torch_error, tmp_path)
    assert found is not None
    assert found.errno == errno.EIO  # the disk of the tests is not full
    assert as_disk_error(RuntimeError("shapes differ"), tmp_path) is None
    assert as_disk_error(FileNotFoundError(errno.ENOENT, "no such file"), tmp_path) is None


def test_a_loss_that_is_not_finite_keeps_its_state_for_inspection(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, save_minutes=float("inf"))
    original = DSRL.update

    def update(algorithm: DSRL, rollout: Any) -> dict[str, float]:
        if algorithm.num_updates == 5:
            with torch.no_grad():
                next(algorithm.off_policy.critic.parameters()).fill_(float("nan"))
        return original(algorithm, rollout)

    def failing() -> None:
        setattr(DSRL, "update", update)  # noqa: B010
        command(config, lambda _: None)

    child = Child(failing, tmp_path / "log")
    assert child.wait() == 3, child.output()
    shown, kept = text_of(child), config.out / "nonfinite_000006"
    assert f"the state is kept in {kept} for inspection" in shown
    assert f"`pitune train --resume {config.out}` goes on from iteration 4" in shown
    assert "Traceback" not in shown
    names = {path.name for path in kept.iterdir()}
    assert {"policy.safetensors", "training.pt", "rollout.pt", "metrics.csv"} <= names
    state = torch.load(kept / "training.pt", weights_only=True)["training"]
    assert any(not torch.isfinite(value).all() for value in state["networks"]["critic"].values())
    rollout = torch.load(kept / "rollout.pt", weights_only=True)
    assert rollout["action"].shape[:2] == (4, 4)
    # it is no checkpoint, and the run goes on from the one before
    assert kept not in own_checkpoints(config.out)
    assert_goes_on(config, tmp_path)
    assert kept.is_dir()
