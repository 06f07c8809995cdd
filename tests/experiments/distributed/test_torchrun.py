"""A training that torchrun itself starts: a signal to it, and going on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_processes import free_port
from small_runs import rows

from pitune.experiments.runs.folder.checkpoints import own_checkpoints

ROOT = Path(__file__).parents[3]
OPTIONS = (
    *("--env.id", "mock/Reach", "--env.num-envs", "4", "--num-chunks", "4"),
    *("--eval-episodes", "5", "--no-video", "--wandb", "off", "--seed", "3"),
    *("--algorithm.update.minibatch-size", "8"),
)


def started(log: Path, *options: str | Path) -> subprocess.Popen[bytes]:
    """Start a training on two ranks, with its output in a file."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
    command = [sys.executable, *launcher, str(free_port()), "-m", "pitune.experiments.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, *map(str, options)], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


@pytest.mark.slow
def test_a_signal_to_torchrun_ends_both_ranks_with_a_checkpoint_to_go_on_from(
    half_trained: Path, tmp_path: Path
) -> None:
    start = ("ppo", *OPTIONS, "--checkpoint", half_trained)
    limit = ("--num-iterations", "6", "--eval-every", "6")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert started(tmp_path / "whole.log", *start, *limit, "--out", whole).wait(300) == 0

    # many iterations, of which the signal leaves a few
    endless = ("--num-iterations", "100000", "--eval-every", "6")
    process = started(tmp_path / "run.log", *start, *endless, "--out", run)
    end = time.monotonic() + 200
    while not (run / "metrics.csv").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) != 0
    saved = own_checkpoints(run)[-1]
    assert (saved / "rank_001" / "state.pt").is_file()
    assert "stopped at the checkpoint of iteration" in (tmp_path / "run.log").read_text()
    done = len(rows(run))
    assert done >= 1

    # it goes on with the numbers of the uninterrupted run
    rest = ("--num-iterations", str(max(6, done)))
    assert started(tmp_path / "rest.log", "--resume", run, *rest).wait(300) == 0
    assert rows(run)[:6] == rows(whole)
