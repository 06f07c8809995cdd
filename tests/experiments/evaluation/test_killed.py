"""An evaluation that is killed at any moment goes on, and has the rows of an uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pitune import envs, policies
from pitune.experiments.evaluate import EvaluateConfig, evaluate
from pitune.experiments.evaluation.rows_file import ROWS

ENV = envs.EnvConfig(
    id="mock/Reach", num_envs=6, num_workers=0, reward="dense", max_episode_steps=12
)


@pytest.fixture(scope="module")
def checkpoints(tiny_policy: Callable, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("policies")
    for seed in (0, 1):
        policies.save(tiny_policy(horizon=4, seed=seed), folder / str(seed))
    return [folder / "0", folder / "1"]


@pytest.fixture
def config(checkpoints: list[Path]) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=checkpoints[0],
        compare=checkpoints[1],
        env=ENV,
        episodes=20,
        seeds=(0, 3),
        vary=(("execution_horizon", "2", "3"),),
        device="cpu",
        torch_threads=1,
    )


def results(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "result.json").read_text())["cells"])


def num_rows(folder: Path) -> int:
    files = [*folder.glob(ROWS), *folder.glob(f"shards/*/{ROWS}")]
    return sum(file.read_bytes().count(b"\n") for file in files)


def test_ten_kills_change_no_row(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluate(replace(config, folder=whole))
    total = num_rows(whole)
    assert total == 20 * 2 * 2 * 2

    # a child for each attempt, killed by the operating system after a random number of rows
    chance = random.Random(0)
    fork = multiprocessing.get_context("fork")
    ends = sorted(chance.sample(range(total), 10))
    for end in ends:
        child = fork.Process(target=evaluate, args=(replace(config, folder=killed),))
        child.start()
        while num_rows(killed) < end and child.is_alive():
            time.sleep(0.001)
        time.sleep(0.01 * chance.random())
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert num_rows(killed) < total
    evaluate(replace(config, folder=killed))
    assert results(killed) == results(whole)
    # nothing was played twice
    assert num_rows(killed) == total


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_last_line_that_was_cut_is_played_again(
    cut: int, config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, folder=tmp_path, compare=None, vary=(("flow_steps", "2"),))
    evaluate(config)
    first = results(tmp_path)
    rows = tmp_path / ROWS
    rows.write_bytes(rows.read_bytes()[:-cut] + b"\0" * (cut // 30))
    (tmp_path / "result.json").unlink()
    capsys.readouterr()
    evaluate(config)
    assert "its last line was cut short" in capsys.readouterr().err
    assert results(tmp_path) == first


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_ten_kills_of_the_command_change_no_row(shards: int, tmp_path: Path) -> None:
    """The whole command on real physics, with its worker processes and with shares."""
    env = envs.make(envs.EnvConfig(id="mujoco/PickCube", num_envs=1, num_workers=0))
    import torch

    torch.manual_seed(0)
    states, actions = torch.randn(50, env.spec.state_dim), torch.rand(50, env.spec.action_dim)
    sampler = policies.SamplerConfig(flow_steps=4, execution_horizon=4)
    policy = policies.small_policy(states, actions, action_horizon=8, sampler=sampler)
    policies.save(policy, tmp_path / "policy")

    def start(folder: Path, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pitune.experiments.evaluate"]
        options = ["--checkpoint", str(tmp_path / "policy"), "--env.id", "mujoco/PickCube"]
        options += ["--env.num-envs", "10", "--env.reward", "dense", "--episodes", "200"]
        log = (tmp_path / "log.txt").open("ab")
        return subprocess.Popen(
            [*command, *options, "--folder", str(folder), *words], stdout=log, stderr=log
        )

    assert start(tmp_path / "whole").wait() == 0
    chance = random.Random(shards)
    killed, words = tmp_path / "killed", ["--shards", str(shards)]
    for end in sorted(chance.sample(range(180), 10)):
        process = start(killed, *words)
        while num_rows(killed) < end and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.random())
        process.kill()
        process.wait()
    assert start(killed, *words).wait() == 0
    whole, resumed = (
        json.loads((folder / "result.json").read_text())["result"]
        for folder in (tmp_path / "whole", killed)
    )
    assert resumed == whole
    assert len(whole["rows"]) == 200
