"""Immiscible noise: an assignment of a minibatch's noise to its chunks, in cloning alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pitune import envs, policies, rl
from pitune.policies.flow.immiscible import assigned_noise
from pitune.rl.algorithms import bc
from pitune.rl.algorithms.bc import CloningStep
from pitune.rl.experience.sub_dict import sub_dict


def drawn(rows: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    chunk = torch.randn(rows, 4, 2, generator=generator)
    return chunk, torch.randn(rows, 4, 2, generator=generator)


def cost(chunk: Tensor, noise: Tensor) -> float:
    return float((chunk - noise).square().sum())


def test_the_noise_is_permuted_and_its_cost_falls() -> None:
    chunk, noise = drawn()
    assigned = assigned_noise(chunk, noise)
    order = (assigned[:, None] == noise).flatten(2).all(2)  # (B, B)
    assert order.sum(0).tolist() == order.sum(1).tolist() == [1] * 32
    assert cost(chunk, assigned) < 0.9 * cost(chunk, noise)


def test_no_permutation_is_better() -> None:
    chunk, noise = drawn(6)
    least = min(cost(chunk, noise[list(order)]) for order in permutations(range(6)))
    assert cost(chunk, assigned_noise(chunk, noise)) == pytest.approx(least, rel=1e-6)


def test_the_noise_of_all_minibatches_stays_standard_normal_and_that_of_a_chunk_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    chunk = torch.randn(16, 1, 1, generator=generator)
    draws = torch.stack(
        [assigned_noise(chunk, torch.randn(16, 1, 1, generator=generator)) for _ in range(2000)]
    )
    assert float(draws.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(draws.std()) == pytest.approx(1.0, abs=0.03)
    # the bias that the docs name: the noise of a row follows its chunk
    per_row = draws.mean(0).flatten()
    assert float(torch.corrcoef(torch.stack([per_row, chunk.flatten()]))[0, 1]) > 0.9
    assert float(draws.std(0).mean()) < 0.6


def test_each_of_several_draws_is_assigned_within_its_rows() -> None:
    chunk, noise = drawn()
    several = torch.stack([noise, noise.flip(0) + 0.1], 1)  # (B, M, H, A)
    assigned = assigned_noise(chunk, several)
    for draw in range(2):
        assert torch.equal(assigned[:, draw], assigned_noise(chunk, several[:, draw]))


# In cloning


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("on", [True, False])
def test_a_cloning_step_learns_from_the_assigned_noise(
    on: bool,
    draws: int,
    tiny_policy: Callable,
    demonstrations_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, seen = tiny_policy(), []
    original = bc.gradient_step

    def recorded(*args: Any, **options: Any) -> Any:
        seen.append(args[2])
        return original(*args, **options)

    monkeypatch.setattr(bc, "gradient_step", recorded)
    config = rl.BCConfig(minibatch_size=16, immiscible_noise=on, draws_per_chunk=draws)
    table = rl.Demonstrations.load(demonstrations_file).preprocess(policy)
    chunks = sub_dict(table.chunks(policy.chunk_shape[0]), slice(16))
    torch.manual_seed(0)
    CloningStep(policy, config)(chunks)
    (batch,) = seen
    torch.manual_seed(0)
    noise = policy.draw_noise(16 * draws)
    if draws > 1:
        noise = noise.unflatten(0, (16, draws))
    chunk = policy.normalized_chunk(batch)
    expected = assigned_noise(chunk, noise) if on else noise
    assert torch.equal(batch["noise"], expected)
    assert torch.equal(batch["noise"], noise) == (not on)


def test_fpo_draws_its_noise_without_an_assignment(
    small_preset: Callable, half_trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(chunk: Tensor, noise: Tensor) -> Tensor:
        calls.append(1)
        return noise

    monkeypatch.setattr(bc, "assigned_noise", counted)
    algorithm = rl.make(small_preset("fpo"), policies.load(half_trained))
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=4, max_episode_steps=7))
    algorithm.update(rl.Rollouts(env, algorithm, 4, seed=0).collect())
    assert not calls
    # the control: filtered cloning asks for it
    config = small_preset("filtered_bc")
    config = replace(config, cloning=replace(config.cloning, immiscible_noise=True))
    algorithm = rl.make(config, policies.load(half_trained))
    rollouts = rl.Rollouts(env, algorithm, 4, seed=0)
    for _ in range(4):
        algorithm.update(rollouts.collect())
    assert calls
