"""Shares of an evaluation: by processes of the command, and by hand."""

from __future__ import annotations

import json
import os
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
from pitune.experiments.evaluate import EvaluateConfig, evaluate, main
from pitune.experiments.evaluation import folder as folders
from pitune.experiments.evaluation import shards
from pitune.experiments.evaluation.rows_file import ROWS
from pitune.experiments.evaluation.shards import _without_shards, run_shards

ENV = envs.EnvConfig(
    id="mock/Reach", num_envs=4, num_workers=0, reward="dense", max_episode_steps=8
)


@pytest.fixture(scope="module")
def checkpoint(tiny_policy: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "policy"
    policies.save(tiny_policy(horizon=4), folder)
    return folder


@pytest.fixture
def config(checkpoint: Path) -> EvaluateConfig:
    return EvaluateConfig(
        checkpoint=checkpoint, env=ENV, episodes=23, device="cpu", torch_threads=1
    )


def words(checkpoint: Path, folder: Path) -> list[str]:
    return [
        *("--checkpoint", str(checkpoint), "--env.id", "mock/Reach", "--env.num-envs", "4"),
        *("--env.num-workers", "0", "--env.reward", "dense", "--env.max-episode-steps", "8"),
        *("--episodes", "23", "--device", "cpu", "--folder", str(folder)),
    ]


def rows(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "result.json").read_text())["result"]["rows"])


def test_shares_by_hand_have_the_rows_of_one_process(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(replace(config, folder=tmp_path / "whole"))
    shared = replace(config, folder=tmp_path / "shared")
    for shard in ("3/3", "1/3", "2/3"):
        assert evaluate(replace(shared, shard=shard)).rows == ()
        assert not (tmp_path / "shared" / "result.json").exists()
        assert f"share {shard} of" in capsys.readouterr().err
    evaluate(shared)
    assert rows(tmp_path / "shared") == rows(tmp_path / "whole")
    # the last command played nothing, and the shares nothing twice
    files = sorted((tmp_path / "shared").glob(f"shards/*/{ROWS}"))
    assert sum(file.read_bytes().count(b"\n") for file in files) == 23
    assert (tmp_path / "shared" / ROWS).read_bytes() == b""


def test_another_number_of_shares_goes_on_with_the_same_rows(
    config: EvaluateConfig, tmp_path: Path
) -> None:
    evaluate(replace(config, folder=tmp_path / "whole"))
    shared = replace(config, folder=tmp_path / "shared")
    for shard in ("2/3", "1/2"):
        evaluate(replace(shared, shard=shard))
    evaluate(shared)
    assert rows(tmp_path / "shared") == rows(tmp_path / "whole")


def test_the_command_starts_the_processes_and_has_the_same_rows(
    config: EvaluateConfig, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "IMPORTED", [])  # not those of other tests in this process
    evaluate(replace(config, folder=tmp_path / "whole"))
    main([*words(checkpoint, tmp_path / "shared"), "--shards", "2"])
    assert rows(tmp_path / "shared") == rows(tmp_path / "whole")
    logs = sorted((tmp_path / "shared").glob("shards/*/log.txt"))
    assert [log.parent.name for log in logs] == ["1_of_2", "2_of_2"]


@pytest.mark.slow
def test_a_share_that_fails_is_named_with_its_output(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"1_of_1 has failed \(exit status 2\): .*num_envs=0"):
        run_shards(
            tmp_path,
            1,
            [*words(checkpoint, tmp_path)[:4], "--env.num-envs", "0", "--folder", str(tmp_path)],
            23,
        )


def test_shares_repeat_a_command_line(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shards=2 repeats a command line"):
        evaluate(replace(config, folder=tmp_path, shards=2))
    given = ["--seed", "1", "--shards", "3", "--episodes", "5", "--shards=4"]
    assert _without_shards(given) == ["--seed", "1", "--episodes", "5"]


def test_two_processes_never_play_the_same_share(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 0.2)
    (tmp_path / "shards" / "1_of_2").mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path; from pitune.experiments.runs.folder.lock "
        "import lock; lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    share = tmp_path / "shards" / "1_of_2"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(share)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        for shard in ("1/2", None):
            with pytest.raises(FileExistsError, match=r"1_of_2 is in use by process .*--folder"):
                evaluate(replace(config, folder=tmp_path, shard=shard))
        evaluate(replace(config, folder=tmp_path, shard="2/2"))
    finally:
        process.kill()
        process.wait()
    evaluate(replace(config, folder=tmp_path))


@pytest.mark.slow
def test_shares_end_with_the_command_that_started_them(checkpoint: Path, tmp_path: Path) -> None:
    """A kill of the command alone leaves no process that would go on playing."""
    given = [*words(checkpoint, tmp_path / "shared"), "--shards", "2", "--episodes", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pitune.experiments.evaluate", *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    locks = [tmp_path / "shared" / "shards" / f"{n}_of_2" / "run.lock" for n in (1, 2)]
    pids: list[int] = []
    try:
        deadline = time.monotonic() + 120
        while len(pids) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            texts = [file.read_text() for file in locks if file.exists()]
            pids = [json.loads(text)["pid"] for text in texts if text]
        assert len(pids) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
