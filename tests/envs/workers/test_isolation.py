"""The code of users: its random numbers, its global state, its exits and its processes."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pitune import envs
from pitune.envs.workers import launch
from pitune.envs.workers.surroundings import Surroundings
from user_envs import is_alive, make, play

RANDOM = ("NumpyStart", "PythonStart", "TorchStart", "NoisySensor")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _global_state() -> Iterator[None]:
    """Undo what a broken guard would leave to other tests."""
    folder, output, filters = os.getcwd(), sys.stdout, list(warnings.filters)
    yield
    os.chdir(folder)
    sys.stdout = output
    warnings.resetwarnings()
    warnings.filters[:] = filters  # type: ignore[index]
    torch.set_default_dtype(torch.float32)


# Random numbers


@pytest.mark.parametrize("name", RANDOM)
def test_global_generators_are_seeded_by_the_episode(name: str) -> None:
    """Four starts are four, and equal seeds are equal episodes."""
    env = make(name)
    states, *_ = play(env, 14)
    assert len({tuple(row) for row in states[0]}) == 4
    random.random()
    np.random.random()  # noqa: NPY002
    assert play(env, 14)[0] == states
    assert env.spec.deterministic_reset
    start = env.reset(torch.tensor([5, 5, 6, 5]))["state"]
    assert torch.equal(start[0], start[1])
    assert torch.equal(start[0], start[3])
    assert not torch.equal(start[0], start[2])


@pytest.mark.parametrize("name", ["NumpyStart", "NoisySensor", "SeededWhenMade"])
def test_random_numbers_do_not_depend_on_the_workers(name: str) -> None:
    traces = []
    for num_workers in (0, 1, 3):
        env = make(name, num_workers=num_workers)
        traces.append(play(env, 14)[0])
        env.close()
    assert traces[0] == traces[1] == traces[2]
    assert len({tuple(row) for row in traces[0][0]}) == 4


@pytest.mark.parametrize("name", ["SeededWhenMade", "Unseeded", "Curriculum", "SharedCounter"])
def test_starts_that_the_seed_does_not_fix_are_recorded(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    env = make(name)
    assert not env.spec.deterministic_reset
    assert f"{name}-v0: two resets with one seed gave different starts" in caplog.text


def test_nothing_of_the_probe_is_left_in_an_environment() -> None:
    """Also not in its class, where it has a process of its own."""
    env = make("Curriculum")
    assert [round(n, 3) for n in env.reset(torch.tensor([7, 7, 7, 7]))["state"][:, 0].tolist()] == [
        pytest.approx(np.random.default_rng(7).uniform(-1, 1) / 5, abs=1e-3)
    ] * 4
    env = make("SharedCounter", num_workers=2)
    assert env.reset(torch.arange(4))["state"][:, 0].tolist() == pytest.approx([0.1, 0.2] * 2)
    env.close()


@pytest.mark.parametrize("name", [*RANDOM, "Meddler"])
def test_the_trainers_random_numbers_stay(name: str) -> None:
    def draws(with_env: bool) -> list[float]:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        np.random.normal()  # noqa: NPY002 - keeps another one, which must stay too
        if with_env:
            env = make(name)
            play(env, 14)
            env.render()
            env.expert().act()
            env.close()
        return [random.random(), float(np.random.normal()), float(torch.rand(()))]  # noqa: NPY002

    assert draws(with_env=True) == draws(with_env=False)


# Global state


def test_settings_and_the_folder_of_the_trainer_stay() -> None:
    before: list[Any] = [os.getcwd(), sys.stdout, list(warnings.filters), np.geterr()]
    env = make("Meddler")
    play(env, 14)
    env.render()
    env.close()
    assert [os.getcwd(), sys.stdout, list(warnings.filters), np.geterr()] == before
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_environment_keeps_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "here.txt").touch()
    monkeypatch.chdir(tmp_path)
    env = make("RelativeFolder", num_workers=num_workers, kwargs={"folder": "inside"})
    states, *_ = play(env, 3)
    env.close()
    assert all(row[2] == 1 for rows in states for row in rows)
    assert Path.cwd() == tmp_path


def test_signal_handlers_of_the_trainer_stay() -> None:
    import signal

    before = signal.getsignal(signal.SIGINT)
    surroundings = Surroundings(1, shared=True)
    with surroundings.borrowed():
        surroundings.enter(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is before


# Exits


@pytest.mark.parametrize("how", ["sys.exit", "os._exit", "os.abort", "raise"])
@pytest.mark.parametrize("when", ["make", "reset", "later reset", "step", "render", "close"])
def test_no_exit_ends_the_trainers_process(how: str, when: str) -> None:
    def run() -> None:
        env = make("Leaver", max_failures=2, kwargs={"how": how, "when": when})
        play(env, 30)
        env.render()
        env.close()

    if when in ("close", "later reset"):  # which is tried again with a new environment
        run()
        return
    cause = {"sys.exit": "SystemExit", "raise": "gripper fell off"}.get(how, f"called {how}")
    with pytest.raises(RuntimeError, match=cause):
        run()


@pytest.mark.parametrize(
    ("how", "when", "cause"),
    [
        ("sys.exit", "make", "SystemExit"),
        ("os._exit", "make", "ended with exit code 0 while it made its environments"),
        ("os.abort", "step", "ended with exit code -6"),
        ("sys.exit", "step", "SystemExit"),
        ("hang", "step", "gave no answer within 0.5 s"),
    ],
)
def test_no_exit_in_a_worker_ends_in_silence(how: str, when: str, cause: str) -> None:
    times = {"step_timeout": 0.5} if how == "hang" else {}
    with pytest.raises(RuntimeError, match=cause):
        play(
            make("Leaver", 2, 2, max_failures=1, kwargs={"how": how, "when": when}, **times),
            30,
        )


def test_a_start_that_hangs_is_begun_by_a_new_worker() -> None:
    env = make("Leaver", 2, 2, reset_timeout=1.0, kwargs={"how": "hang", "when": "third reset"})
    states, ended, invalid = play(env, 30)
    env.close()
    assert (ended, invalid) == (4, 0)
    assert len(states) > 30


def test_children_that_the_trainer_forks_may_still_exit() -> None:
    surroundings = Surroundings(1, shared=True)
    with surroundings.borrowed():
        surroundings.enter(0)
        process = multiprocessing.get_context("fork").Process(target=int)
        process.start()
        process.join(20)
    assert process.exitcode == 0


# Processes


@pytest.mark.parametrize("kind", ["subprocess", "fork"])
def test_an_environment_may_run_processes_which_end_with_it(kind: str) -> None:
    env = make("Parent", 2, 1, kwargs={"kind": kind})
    pids = [int(row[2]) for row in env.reset(torch.arange(2))["state"].tolist()]
    assert all(is_alive(pid) for pid in pids)
    env.close()
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def test_a_long_temporary_folder_does_not_stop_the_workers(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("longer" * 30)
    folder.mkdir(parents=True)
    code = (
        "from user_envs import make, play\n"
        "if __name__ == '__main__':\n"
        "    env = make('Point', 2, 2)\n"
        "    print(play(env, 3)[1:])\n"
        "    env.close()\n"
    )
    (tmp_path / "user.py").write_text(code)
    paths = f"{ROOT}:{ROOT / 'tests' / 'support'}"
    result = subprocess.run(
        [sys.executable, str(tmp_path / "user.py")],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout == "(0, 0)\n", result.stderr


def test_without_any_short_folder_the_temporary_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launch, "SHORT_FOLDERS", ("/does/not/exist",))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 90)
    with pytest.raises(ValueError, match=r"TMPDIR=/tmp/x+ has 95 bytes, .* a shorter folder"):
        launch.keep_sockets_short()


def test_a_working_seed_range_is_that_of_the_contract() -> None:
    env = make("NumpyStart", 1)
    env.reset(torch.tensor([2**31 - 1]))
    assert isinstance(env, envs.CheckedEnv)
