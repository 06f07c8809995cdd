"""The small world of a fuzz case: a clone, runs, demonstrations and a checkpoint of openpi."""

from __future__ import annotations

import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import torch

from pitune import envs, rl
from pitune.experiments.pretrain import PretrainConfig, pretrain
from pitune.experiments.train import TrainConfig, train
from pitune.policies import GemmaConfig, SamplerConfig

ROOT = Path(__file__).resolve().parents[2]
ENV = envs.config_for("mock/Reach", num_envs=4, num_workers=0)
ENV_WORDS = ("--env.id", "mock/Reach", "--env.num-envs", "4", "--env.num-workers", "0")
TINY = GemmaConfig(width=16, depth=1, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)
LOOP = ("--num-chunks", "2", "--eval-every", "1", "--eval-episodes", "4", "--wandb", "off")
RESUME = (
    *("train", "ppo", "--checkpoint", "clone/pretrained", "--out", "run", *ENV_WORDS, *LOOP),
    *("--algorithm.update.minibatch-size", "8", "--algorithm.critic-warmup", "1", "--no-video"),
    *("--resume", "--num-iterations", "4"),
)
"""Command that continues `run`, which has three of its four iterations."""


def make_world(folder: Path) -> None:
    """Write the world: `clone/`, `run/` (interrupted), `finished/` and `openpi/`."""
    torch.set_num_threads(1)
    here = Path.cwd()
    os.chdir(folder)  # the commands of the cases have relative paths
    try:
        _write_runs(folder)
    finally:
        os.chdir(here)
    openpi = ROOT / "tests" / "fixtures" / "openpi" / "pi0_tiny"
    shutil.copytree(openpi, folder / "openpi")


def _write_runs(folder: Path) -> None:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        pretrain(
            PretrainConfig(
                env=ENV,
                out=folder / "clone",
                num_demonstrations=6,
                gradient_steps=30,
                minibatch_size=16,
                action_horizon=2,
                sampler=SamplerConfig(flow_steps=2, execution_horizon=2),
                expert=TINY,
            )
        )
        config = TrainConfig(
            algorithm=rl.PPOConfig(update=rl.UpdateConfig(minibatch_size=8), critic_warmup=1),
            env=ENV,
            # as the commands of the cases write it
            checkpoint=Path("clone/pretrained"),
            out=Path("run"),
            num_iterations=3,
            num_chunks=2,
            eval_every=1,
            eval_episodes=4,
            wandb="off",
            video=False,
        )
        train(config)
        train(replace(config, out=Path("finished"), num_iterations=2))
    (folder / "run" / "summary.json").unlink()  # it was interrupted
