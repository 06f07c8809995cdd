"""A run with a replay memory and checkpoints by time is interrupted anywhere and changes no number.

`python -m pytest -m slow -s tests/experiments/runs/test_interruptions.py` prints a table of each
interruption: the signal, the latest row and checkpoint, and the temporary files that it left.
"""

from __future__ import annotations

import os
import signal
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
from pitune.experiments.runs.folder.checkpoints import own_checkpoints
from pitune.experiments.runs.signals import exit_on_signal
from pitune.experiments.train import TrainConfig, train
from settings import changed

KILLS, STOPS = 20, 5


@pytest.fixture
def config(small_preset: Callable, run_of: Callable[..., TrainConfig]) -> TrainConfig:
    # full after nineteen iterations
    algorithm = changed(small_preset("dsrl"), capacity=300)
    return run_of(algorithm, num_iterations=120, eval_every=40, save_minutes=0.002)


def weights(folder: Path) -> bytes:
    return (own_checkpoints(folder)[-1] / "policy.safetensors").read_bytes()


def command(config: TrainConfig) -> None:
    """Train as the command does, from the latest checkpoint if there is one."""
    with exit_on_signal():
        train(replace(config, resume=bool(own_checkpoints(config.out))))


def leftovers(folder: Path) -> list[str]:
    """Return the temporary files of a run, which its next start removes."""
    names = [path.name for path in folder.rglob("*")]
    return sorted(name for name in names if name.startswith(("tmp_", ".removed_")))


def state_of(folder: Path) -> tuple[int, int]:
    """Return the iterations of the latest row and of the latest checkpoint, -1 without one."""
    file = folder / "metrics.csv"
    lines = file.read_bytes().count(b"\n") - 1 if file.exists() else -1
    saved = [int(path.name.rpartition("_")[2]) for path in own_checkpoints(folder)]
    return lines, max(saved, default=-1)


@pytest.mark.slow
def test_kills_and_stops_at_random_moments_change_no_number(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = replace(config, out=tmp_path / "whole", save_minutes=1e9)
    start = time.monotonic()
    train(whole)
    seconds = time.monotonic() - start
    generator = torch.Generator().manual_seed(0)
    signals = [signal.SIGKILL] * KILLS + [signal.SIGTERM] * STOPS
    order = torch.randperm(len(signals), generator=generator).tolist()
    table: list[tuple[Any, ...]] = []
    for number in (signals[place] for place in order):
        running = Child(partial(command, config), tmp_path / "log")
        time.sleep(float(torch.rand((), generator=generator)) * seconds / 10)
        os.kill(running.pid, number)
        code = running.wait()
        assert code == (-9 if number == signal.SIGKILL else 143), running.output()
        table.append((signal.Signals(number).name, *state_of(config.out), leftovers(config.out)))
    assert Child(partial(command, config), tmp_path / "log").wait(600) == 0
    with capsys.disabled():
        for row in table:
            print(*row, sep="\t")
    assert rows(config.out) == rows(whole.out)
    assert weights(config.out) == weights(whole.out)
    assert not leftovers(config.out)
    text = (tmp_path / "log").read_text()
    assert "with new episodes" not in text
    assert max(saved for _, _, saved, _ in table) > 0
    # a checkpoint lists all files of the memory, and no others are left
    assert len(list((config.out / "replay").iterdir())) <= 120
