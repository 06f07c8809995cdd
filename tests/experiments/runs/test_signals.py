"""Signals: a run ends with a checkpoint, an exit code and a sentence, and goes on from there."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import rows

from forks import Child
from pitune import rl
from pitune.experiments.quickstart import main as quickstart_main
from pitune.experiments.runs.folder.checkpoints import own_checkpoints
from pitune.experiments.runs.signals import StoppedBySignal, exit_on_signal, stop_request
from pitune.experiments.train import TrainConfig, Trainer, train
from pitune.rl.experience.repeated import PlayedActions
from pitune.rl.experience.rollouts import Rollouts

NUMBERS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


@pytest.fixture
def config(run_of: Callable[..., TrainConfig]) -> TrainConfig:
    return run_of("ppo", num_iterations=6, eval_every=3)


def command(config: TrainConfig) -> None:
    """Train as the command does."""
    with exit_on_signal():
        train(config)


def stop_in(function: str, call: int, number: int, config: TrainConfig, times: int = 1) -> None:
    """Train, and get a signal at the n-th call of a method of the trainer."""
    original, count = getattr(Trainer, function), iter(range(1, 1000))

    def signalled(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        if next(count) == call:
            for _ in range(times):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        return original(trainer, *args, **kwargs)

    setattr(Trainer, function, signalled)
    command(config)


def child(function: str, call: int, number: int, config: TrainConfig, **kwargs: Any) -> Child:
    log = config.out.with_name("log")
    return Child(lambda: stop_in(function, call, number, config, **kwargs), log)


def weights(folder: Path) -> bytes:
    return (own_checkpoints(folder)[-1] / "policy.safetensors").read_bytes()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_saves_the_iteration_and_exits_with_its_number(
    number: signal.Signals, config: TrainConfig
) -> None:
    stopped = child("_iterate", 2, number, config)
    assert stopped.wait() == 128 + number
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    shown = " ".join(stopped.output().split())
    assert f"{name}: the run saves a checkpoint after this iteration and ends; a second" in shown
    assert f"stopped at the checkpoint of iteration 2 in {config.out}; `pitune train --re" in shown
    assert "there, with the numbers of an uninterrupted run" in shown
    assert "Traceback" not in shown
    assert [path.name for path in own_checkpoints(config.out)][-1] == "checkpoint_000002"
    assert not (config.out / "summary.json").exists()
    torch.manual_seed(99)
    summary = train(replace(config, resume=True))
    assert (summary["iterations"], summary["restarts"]) == (6, [])
    whole = replace(config, out=config.out.with_name("whole"))
    train(whole)
    assert rows(config.out) == rows(whole.out)
    assert weights(config.out) == weights(whole.out)


def test_a_simulator_that_does_not_repeat_its_episodes_begins_new_ones(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert child("_iterate", 2, signal.SIGTERM, config).wait() == 143
    monkeypatch.setattr(PlayedActions, "equals_last", lambda *_: False)
    summary = train(replace(config, resume=True))
    assert (summary["iterations"], summary["restarts"]) == (6, [2])
    shown = " ".join(capsys.readouterr().err.split())
    assert "at iteration 2, with new episodes, because the simulator did not repeat" in shown


def test_a_checkpoint_without_its_episodes_begins_new_ones(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def forgetful() -> None:
        setattr(Rollouts, "state", lambda _: None)  # noqa: B010
        stop_in("_iterate", 2, signal.SIGTERM, config)

    stopped = Child(forgetful, config.out.with_name("log"))
    assert stopped.wait() == 143
    assert "with new episodes, so that later numbers differ" in " ".join(stopped.output().split())
    assert train(replace(config, resume=True))["restarts"] == [2]
    assert "at iteration 2, with new episodes: later" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("function", "call", "iteration"),
    [
        ("_iterate", 3, 3),  # the evaluation that is due is postponed
        ("_evaluate", 1, 3),  # it is broken off
        ("_iterate", 6, 6),
        ("_evaluate", 2, 6),
        ("_checkpoint", 2, 3),
    ],
)
def test_a_run_stopped_where_an_evaluation_is_due_goes_on_bit_for_bit(
    function: str, call: int, iteration: int, config: TrainConfig, tmp_path: Path
) -> None:
    whole = replace(config, out=tmp_path / "whole")
    train(whole)
    stopped = child(function, call, signal.SIGTERM, config)
    assert stopped.wait() == 143
    shown = " ".join(stopped.output().split())
    if function != "_checkpoint":  # the signal came after the iteration's own checks
        assert f"stopped at the checkpoint of iteration {iteration} in " in shown
        assert "there, with the numbers of an uninterrupted run" in shown
    torch.manual_seed(99)
    summary = train(replace(config, resume=True))
    assert rows(config.out) == rows(whole.out)
    assert weights(config.out) == weights(whole.out)
    expected = json.loads((whole.out / "summary.json").read_text())
    for name in ("before", "after", "env_steps", "iterations", "restarts"):
        assert json.loads(json.dumps(summary[name])) == expected[name], name


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_before_the_first_checkpoint_leaves_nothing(
    number: signal.Signals, config: TrainConfig
) -> None:
    for function in ("_prepare", "_final_evaluation"):
        stopped = child(function, 1, number, config)
        assert stopped.wait() == 128 + number
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        assert f"stopped by {name}" in stopped.output()
        assert not config.out.exists()


def test_a_signal_in_the_last_evaluation_loses_nothing(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, num_iterations=3)
    train(replace(config, out=tmp_path / "whole"))
    assert child("_final_evaluation", 2, signal.SIGTERM, config).wait() == 143
    train(replace(config, resume=True))
    assert rows(config.out) == rows(tmp_path / "whole")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_second_signal_ends_at_once(number: signal.Signals, config: TrainConfig) -> None:
    assert child("_iterate", 2, number, config, times=2).wait() == -number
    assert train(replace(config, resume=True))["iterations"] == 6


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    number: signal.Signals, config: TrainConfig
) -> None:
    def ignoring() -> None:
        signal.signal(number, signal.SIG_IGN)
        stop_in("_iterate", 1, number, config)

    assert Child(ignoring, config.out.with_name("log")).wait() == 0


def test_an_iteration_that_fails_because_its_processes_were_stopped_too_is_repeated(
    config: TrainConfig, tmp_path: Path
) -> None:
    """A signal to the whole process group reaches the workers of the environment."""
    train(replace(config, out=tmp_path / "whole"))

    def broken(trainer: Trainer) -> dict[str, float]:
        if trainer.iteration == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("worker 1 ended with exit code -15")
        return original(trainer)

    def failing() -> None:
        setattr(Trainer, "_iterate", broken)  # noqa: B010
        command(config)

    original = Trainer._iterate
    stopped = Child(failing, tmp_path / "log")
    assert stopped.wait() == 143
    assert "iteration 5 is lost (worker 1 ended" in stopped.output()
    assert "stopped at the checkpoint of iteration 3 in " in " ".join(stopped.output().split())
    train(replace(config, resume=True))
    assert rows(config.out) == rows(tmp_path / "whole")


@pytest.mark.parametrize("arrives", [True, False])
def test_an_error_that_a_signal_causes_on_its_way_out_is_the_signal(arrives: bool) -> None:
    """A library that is interrupted in its own clean-up raises an error in the signal's place."""

    def work() -> None:
        with exit_on_signal():
            try:
                if arrives:
                    signal.raise_signal(signal.SIGTERM)
            finally:
                raise RuntimeError("of a library")

    with pytest.raises(StoppedBySignal if arrives else RuntimeError) as caught:
        work()
    code = caught.value.code if isinstance(caught.value, StoppedBySignal) else None
    assert code == (143 if arrives else None)


def test_handlers_are_those_of_before_when_the_work_is_over() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]

    def stopped_work() -> None:
        with exit_on_signal(), stop_request() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.stopped is not None
            raise request.stopped

    with pytest.raises(StoppedBySignal):
        stopped_work()
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_another_thread_than_the_main_one_gets_no_handlers(config: TrainConfig) -> None:
    done: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: done.append(train(config)))
    thread.start()
    thread.join()
    assert done[0]["iterations"] == 6


def test_a_run_is_stopped_between_the_parts_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the quickstart collects demonstrations there is no run yet."""

    def collecting(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    def quickstart() -> None:
        rl.collect_demonstrations = collecting
        words = ["--env.id", "mock/Reach", "--out", str(tmp_path / "job"), "--wandb", "off"]
        quickstart_main(words)

    stopped = Child(quickstart, tmp_path / "log")
    assert stopped.wait() == 143
    assert "stopped by SIGTERM" in stopped.output()


# Kills


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_number(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, num_iterations=30)
    whole = replace(config, out=tmp_path / "whole")
    start = time.monotonic()
    train(whole)
    seconds = time.monotonic() - start
    generator = torch.Generator().manual_seed(0)
    kills = 0
    while kills < 10:
        begun = bool(own_checkpoints(config.out))
        again = partial(train, replace(config, resume=begun))
        running = Child(again, tmp_path / "log")
        time.sleep(float(torch.rand((), generator=generator)) * seconds / 8)
        os.kill(running.pid, signal.SIGKILL)
        kills += running.wait() == -signal.SIGKILL
        if (config.out / "summary.json").exists():
            break
    train(replace(config, resume=bool(own_checkpoints(config.out))))
    assert kills >= 5
    assert rows(config.out) == rows(whole.out)
    assert weights(config.out) == weights(whole.out)
