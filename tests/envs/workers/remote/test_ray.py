"""`ray`: actors give the numbers of local workers, and one that dies is replaced.

python -m pytest -m ray tests/envs/workers/remote
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, policies, rl
from pitune.envs import ChunkEnv, EpisodeSeeds
from pitune.envs.workers.env import WorkerEnv
from pitune.envs.workers.remote import ray as ray_module
from pitune.envs.workers.remote.ray import RayWorker
from pitune.experiments.train import TrainConfig, Trainer, train

NUM_ENVS, HORIZON = 6, 4
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is missing")


def config_on(place: Any) -> envs.EnvConfig:
    return envs.EnvConfig(
        id="gym/Pendulum-v1",
        num_envs=NUM_ENVS,
        num_workers=2,
        reward="dense",
        max_episode_steps=10,
        workers_on=place,
    )


def chunk_env(place: Any) -> ChunkEnv:
    env = envs.make(config_on(place))
    return ChunkEnv(env, HORIZON, EpisodeSeeds(NUM_ENVS, seed=0, split="train"))


def rollout(env: ChunkEnv, num: int) -> Any:
    torch.manual_seed(0)
    return env.rollout(num, break_when_any_done=False)


def workers_of(env: envs.CheckedEnv) -> list[RayWorker]:
    assert isinstance(env.env, WorkerEnv)
    workers: list[Any] = env.env._pool.workers
    return workers


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"workers_on='ray' needs the package ray; run `pip ins"):
        ray_module.connect(None)


@needs_ray
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_actors_give_the_numbers_of_local_workers() -> None:
    local, remote = chunk_env("processes"), chunk_env("ray")
    expected, found = rollout(local, 6), rollout(remote, 6)
    assert (expected == found).all()
    assert expected["next", "done"].sum() > NUM_ENVS
    local.close()
    remote.close()


@needs_ray
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_an_actor_that_is_killed_is_replaced_and_its_episodes_are_counted() -> None:
    import ray

    env = chunk_env("ray")
    env.rollout(1)
    ray.kill(workers_of(env.env)[0]._actor)
    time.sleep(0.5)
    table = env.rollout(6, break_when_any_done=False, auto_reset=False, tensordict=env.reset())
    broken = table["next", "invalid"].flatten(1).any(1)
    assert not broken[NUM_ENVS // 2 :].any()
    assert table["next", "live"][:, -1].any(-1).all()  # all play again
    env.close()


@needs_ray
@pytest.mark.ray
@pytest.mark.usefixtures("_ray")
def test_a_training_goes_on_without_a_killed_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    policy = policies.small_policy(
        torch.randn(50, 3),
        torch.randn(50, 1),
        action_horizon=HORIZON,
        sampler=policies.SamplerConfig(flow_steps=2, execution_horizon=HORIZON),
    )
    policies.save(policy, tmp_path / "pretrained")
    config = TrainConfig(
        algorithm=rl.PPOConfig(),
        env=replace(config_on("ray"), max_episode_steps=12),
        checkpoint=tmp_path / "pretrained",
        out=tmp_path / "run",
        num_iterations=4,
        num_chunks=4,
        eval_every=4,
        eval_episodes=6,
        wandb="off",
        video=False,
        device="cpu",
    )
    original = Trainer._iterate

    def iterate(trainer: Trainer) -> dict[str, float]:
        if trainer.iteration == 2:
            ray.kill(workers_of(trainer.env)[1]._actor)
        return original(trainer)

    monkeypatch.setattr(Trainer, "_iterate", iterate)
    assert train(config)["iterations"] == 4
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/invalid")
    invalid = [float(line.split(",")[column]) for line in lines[1:]]
    assert invalid[2] == NUM_ENVS // 2
    assert invalid[0] == invalid[1] == invalid[3] == 0
