"""A run with `--compile` is stopped and resumed in another process."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import rows

from forks import Child
from pitune.experiments.runs.folder.checkpoints import own_checkpoints
from pitune.experiments.train import TrainConfig, train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(own_checkpoints(folder)[-1] / "policy.safetensors")


def run(config: TrainConfig, log: Path) -> None:
    """Train in a process of its own, which compiles everything itself."""
    child = Child(partial(train, config), log)
    assert child.wait(900) == 0, child.output()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "dsrl"])
def test_a_compiled_run_that_is_resumed_equals_the_uninterrupted_one(
    run_of: Callable[..., TrainConfig], tmp_path: Path, name: str
) -> None:
    config = run_of(name, compile=True)
    whole = replace(config, num_iterations=4, out=tmp_path / "whole")
    run(whole, tmp_path / "log")
    run(config, tmp_path / "log")
    # one copy goes on with eager functions
    eager = replace(config, num_iterations=4, out=tmp_path / "eager", compile=False)
    run(replace(config, out=eager.out), tmp_path / "log")
    for resumed in (replace(config, num_iterations=4), eager):
        run(replace(resumed, resume=True), tmp_path / "log")

    # compiled all the way: bit for bit
    assert rows(config.out) == rows(whole.out)
    expected = weights(whole.out)
    for key, value in weights(config.out).items():
        assert torch.equal(value, expected[key]), key
    # eager from the checkpoint on: up to rounding
    for key, value in weights(eager.out).items():
        torch.testing.assert_close(value, expected[key], atol=1e-4, rtol=1e-4)
    with (whole.out / "metrics.csv").open(newline="") as lines:
        assert float(next(csv.DictReader(lines))["seconds/compile"]) > 0
