"""Errors end in one sentence; only a fault of ours shows a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pitune.experiments.command_line.errors import exit_with_message
from pitune.extras import EXTRAS, install_command

ROOT = Path(__file__).resolve().parents[3]


def outcome(act: Callable[[], object], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Return the exit status and the standard error of a command that does something."""
    with pytest.raises(SystemExit) as stopped, exit_with_message():
        act()
    return int(stopped.value.code or 0), capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


def loop(path: Path) -> Path:
    """Make a link that points to itself."""
    path.symlink_to(path.name)
    return path


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EPIPE,
        errno.EIO,
    ],
)
def test_an_error_of_the_system_is_one_sentence_with_file_and_remedy(
    number: int, capsys: pytest.CaptureFixture
) -> None:
    error = OSError(number, os.strerror(number), "runs/a")
    status, err = outcome(raising(error), capsys)
    assert status == 1
    assert err.startswith(f"error: runs/a: {os.strerror(number).lower()}; ")
    assert err.count("\n") == 1


def test_an_unknown_error_of_the_system_is_one_sentence_too(capsys: pytest.CaptureFixture) -> None:
    error = OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b")
    assert outcome(raising(error), capsys) == (1, "error: a -> b: invalid cross-device link\n")


@pytest.mark.parametrize(
    "act",
    [
        lambda folder: (folder / "none" / "x").read_text(),
        lambda folder: folder.read_text(),
        lambda folder: ((folder / "file").write_text(""), (folder / "file" / "x").mkdir()),
        lambda folder: (folder / ("x" * 300)).write_text(""),
        lambda folder: loop(folder / "loop").read_text(),
        lambda _: Path("/dev/full").write_text("x"),
    ],
)
def test_paths_that_do_not_work_end_in_one_sentence(
    act: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    status, err = outcome(lambda: act(tmp_path), capsys)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate m"),
    ],
)
def test_a_lack_of_memory_names_what_needs_less(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    status, err = outcome(raising(error), capsys)
    assert status == 1
    assert err.count("\n") == 1
    assert "use fewer environments, smaller minibatches or --finetune.dtype" in err


def test_a_fault_of_ours_shows_its_traceback_and_whose_it_is(capsys: pytest.CaptureFixture) -> None:
    status, err = outcome(raising(KeyError("x")), capsys)
    assert status == 1
    assert err.startswith("Traceback")
    assert "error: KeyError: 'x'; this is a fault of pitune, please report it with the lines" in err


def test_a_runtime_error_that_we_raise_is_a_message_and_that_of_torch_is_a_fault(
    capsys: pytest.CaptureFixture,
) -> None:
    from pitune import envs
    from pitune.rl.experience.replay import Replay

    empty = Replay(4, torch.device("cpu"))
    status, err = outcome(lambda: empty.sample(2), capsys)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("error: the replay memory is empty")
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2, num_workers=0)).env
    wrong = torch.zeros(2, 99)
    status, err = outcome(lambda: env.step(wrong, torch.ones(2, dtype=torch.bool)), capsys)
    assert "Traceback" in err


def test_ctrl_c_is_no_traceback(capsys: pytest.CaptureFixture) -> None:
    assert outcome(raising(KeyboardInterrupt()), capsys) == (130, "interrupted\n")


def test_a_broken_pipe_is_quiet_only_where_it_is_standard_output() -> None:
    """A worker's pipe that breaks must not end a command with status 0."""
    code = (
        "from pitune.experiments.command_line.errors import exit_with_message\n"
        "with exit_with_message():\n    {}\n"
    )
    act = "raise BrokenPipeError(32, 'Broken pipe')"
    done = subprocess.run(
        [sys.executable, "-c", code.format(act)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: broken pipe; the program at the other end has ended\n"
    act = "[print('x' * 1000) for _ in range(1000)]"
    command = [sys.executable, "-c", code.format(act)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_an_extra_is_installed_from_the_clone_or_by_its_packages(tmp_path: Path) -> None:
    """pitune is on no index, so its own name would find nothing or another package."""
    for extra, packages in EXTRAS.items():
        assert install_command(extra) == f'pip install -e "{ROOT}[{extra}]"'
        installed = install_command(extra, clone=tmp_path)
        assert "pitune" not in installed
        assert all(f'"{package}"' in installed for package in packages)


def test_the_extras_are_those_of_setup_cfg() -> None:
    from pitune.experiments.command_line.doctor import requirements

    assert {name: tuple(lines) for name, lines in requirements()[1].items()} == dict(EXTRAS)


def test_no_message_asks_for_pitune_from_an_index() -> None:
    for package in ("rl", "policies", "envs", "experiments"):
        for file in (ROOT / package).rglob("*.py"):
            assert "pitune[" not in file.read_text(), file
