"""`lock`: a folder belongs to one process, for as long as that lives."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from forks import Child
from pitune.experiments.runs.folder.lock import NAME, holder, lock, unlock


def hold(folder: Path) -> None:
    lock(folder)
    (folder / "held").touch()
    time.sleep(60)


@pytest.fixture
def held(tmp_path: Path) -> Child:
    """Return another process that holds the lock of `tmp_path`."""
    child = Child(lambda: hold(tmp_path), tmp_path / "log")
    child.wait_until((tmp_path / "held").exists)
    return child


def test_a_second_process_is_refused_by_pid_and_host(held: Child, tmp_path: Path) -> None:
    words = rf"{tmp_path} is in use by process {held.pid} on {socket.gethostname()} since .*; wait "
    with pytest.raises(FileExistsError, match=words):
        lock(tmp_path)
    assert f"process {held.pid}" in str(holder(tmp_path))
    os.kill(held.pid, signal.SIGKILL)
    held.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_holder_leaves_nothing_to_remove(
    number: signal.Signals, held: Child, tmp_path: Path
) -> None:
    os.kill(held.pid, number)
    held.wait()
    assert holder(tmp_path) is None
    lock(tmp_path)
    assert f"({os.getpid()})" in str(holder(tmp_path))
    unlock(tmp_path)
    assert holder(tmp_path) is None


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    def parent() -> None:
        lock(tmp_path)
        child = Child(lambda: time.sleep(30), tmp_path / "child")
        (tmp_path / "pid").write_text(str(child.pid))

    assert Child(parent, tmp_path / "parent").wait() == 0
    lock(tmp_path)
    unlock(tmp_path)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_process_may_lock_its_folder_again(tmp_path: Path) -> None:
    lock(tmp_path)
    lock(tmp_path)
    unlock(tmp_path)
    assert Child(lambda: lock(tmp_path), tmp_path / "log").wait() == 0


def test_a_folder_that_was_made_again_has_a_lock_of_its_own(tmp_path: Path) -> None:
    lock(tmp_path)
    (tmp_path / NAME).unlink()
    lock(tmp_path)
    child = Child(lambda: lock(tmp_path), tmp_path / "log")
    assert child.wait() == 99
    assert "is in use by process" in child.output()
    unlock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_used(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def without(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without)
    lock(tmp_path)
    assert f"is on a file system without locks ({os.strerror(number)}): take" in (
        capsys.readouterr().err
    )
    unlock(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PermissionError, match="folder cannot be written; make it writable, or "):
        lock(tmp_path)


def test_a_damaged_lock_file_is_no_error(held: Child, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    with pytest.raises(FileExistsError, match="in use by another process; wait"):
        lock(tmp_path)
    os.kill(held.pid, signal.SIGKILL)
    held.wait()
    lock(tmp_path)
    unlock(tmp_path)
