"""Two ranks of evolution strategies against one process with the environments of both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from rank_processes import on_ranks
from tensordict import TensorDictBase
from union import half_of

from pitune import envs, policies, rl
from pitune.rl.experience.sub_dict import sub_dict


def new(checkpoint: Path) -> rl.Algorithm:
    torch.manual_seed(0)
    return rl.make(rl.ESConfig(num_pairs=2), policies.load(checkpoint))


def learned(checkpoint: Path, rollouts: list[TensorDictBase]) -> dict[str, Any]:
    algorithm = new(checkpoint)
    assert isinstance(algorithm, rl.ES)
    fitness = algorithm.fitness(half_of(rollouts[0]))
    for rollout in rollouts:
        algorithm.update(half_of(rollout))
    return {
        "fitness": fitness,
        "seeds": algorithm.perturbations.seeds,
        "weights": algorithm.actor.policy.state_dict(),
    }


def test_two_ranks_learn_as_one_process_with_all_environments(
    half_trained: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=8, max_episode_steps=7))
    collector = rl.Rollouts(env, new(half_trained), 4, seed=0)
    rollouts = [collector.collect().clone() for _ in range(2)]
    work = partial(learned, half_trained, rollouts)
    (one,) = on_ranks(work, 1, tmp_path / "one")
    first, second = on_ranks(work, 2, tmp_path / "two")
    # the halves alone have another fitness, which is the control
    assert not torch.equal(
        one["fitness"], new_fitness(half_trained, sub_dict(rollouts[0], slice(4)))
    )
    for other in (first, second):
        assert torch.allclose(other["fitness"], one["fitness"], atol=1e-6)
        assert torch.equal(other["seeds"], one["seeds"])
        for name, value in one["weights"].items():
            assert torch.allclose(other["weights"][name].float(), value.float(), atol=1e-6), name
    start = policies.load(half_trained).state_dict()
    assert any(not torch.equal(start[name], value) for name, value in one["weights"].items())
    assert all(torch.equal(first["weights"][k], v) for k, v in second["weights"].items())


def new_fitness(checkpoint: Path, rollout: TensorDictBase) -> torch.Tensor:
    algorithm = new(checkpoint)
    assert isinstance(algorithm, rl.ES)
    return algorithm.fitness(rollout)
