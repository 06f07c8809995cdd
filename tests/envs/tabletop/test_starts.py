"""The starts of the tabletop, drawn with numpy and with torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pitune.envs.tabletop.arrays import choose, library_of, norm
from pitune.envs.tabletop.env import Tabletop
from pitune.envs.tabletop.episode import Rules
from pitune.envs.tabletop.experts import PLANS
from pitune.envs.tabletop.starts import draw_starts, draw_uniforms
from pitune.envs.tabletop.tasks import TASKS, Scene, dense_reward
from pitune.envs.tabletop.warp.uniforms import draw_device_uniforms

SEEDS = [*range(500), 2**31 - 1, 2**31 - 2, 2**30, 123456789]


def test_uniform_numbers_on_a_device_are_those_of_numpy_bit_for_bit() -> None:
    on_device = draw_device_uniforms(torch.tensor(SEEDS))
    assert on_device.dtype == torch.float64
    assert (on_device.numpy() == draw_uniforms(SEEDS)).all()
    for row, seed in enumerate(SEEDS[-4:], start=len(SEEDS) - 4):
        assert (on_device[row].numpy() == np.random.default_rng(seed).random(8)).all()


def test_no_seeds_are_no_uniform_numbers() -> None:
    assert draw_uniforms([]).shape == (0, 8)
    assert draw_device_uniforms(torch.empty(0, dtype=torch.int64)).shape == (0, 8)


@pytest.mark.parametrize("task", list(TASKS))
def test_starts_of_tensors_are_those_of_arrays_in_float32(task: str) -> None:
    uniforms, chosen = draw_uniforms(SEEDS), TASKS[task]
    arrays = draw_starts(uniforms, chosen.num_cubes, chosen.goal_of)
    tensors = draw_starts(torch.from_numpy(uniforms), chosen.num_cubes, chosen.goal_of)
    for name in ("tool", "cubes", "goal"):
        array, tensor = getattr(arrays, name), getattr(tensors, name)
        assert tensor.dtype == torch.float64
        assert (array.astype(np.float32) == tensor.float().numpy()).all()
        # sine and cosine of torch and numpy may differ in the last bit
        assert np.abs(array - tensor.numpy()).max() < 1e-16


def scenes(task: str) -> tuple[Scene, Scene]:
    """Return scenes in the middle of episodes, in arrays and in tensors."""
    env = Tabletop(task, 32, num_threads=1)
    env.reset(torch.arange(32))
    expert, generator = env.expert(), torch.Generator().manual_seed(0)
    for _ in range(8):
        noise = 0.3 * torch.randn(32, 4, generator=generator)
        env.step(expert.act() + noise, torch.ones(32, dtype=torch.bool))
    scene = env.scene
    env.close()
    return scene, Scene(**{key: torch.from_numpy(value) for key, value in vars(scene).items()})


@pytest.mark.parametrize("task", list(TASKS))
def test_tasks_and_plans_have_one_result_for_arrays_and_tensors(task: str) -> None:
    array, tensor = scenes(task)
    rules = Rules(task=TASKS[task], reward="dense", max_episode_steps=9)
    np.testing.assert_allclose(rules.state_of(tensor).numpy(), rules.state_of(array), atol=1e-15)
    progress = dense_reward(rules.task, array)
    np.testing.assert_allclose(dense_reward(rules.task, tensor).numpy(), progress, atol=1e-15)

    # ends and rewards of rows that are idle, broken, timed out and on the way
    steps, failed, active = np.arange(32) % 12, np.arange(32) % 5 == 0, np.arange(32) % 3 > 0
    expected = rules.judge(array, steps, active, failed & active)
    got = rules.judge(tensor, *map(torch.from_numpy, (steps, active, failed & active)))
    for left, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(left.numpy(), right, atol=1e-15)
    assert got[2].dtype == torch.float64

    # every phase of the expert
    phase = np.arange(32) % 6 % (3 if task == "PushCube" else 6)
    plan = PLANS[task](array, phase, np.arange(32) % 4)
    other = PLANS[task](tensor, torch.from_numpy(phase), torch.arange(32) % 4)
    assert other.target.dtype == torch.float64
    np.testing.assert_allclose(other.target.numpy(), plan.target, atol=1e-15)
    assert (other.opened.numpy() == plan.opened).all()
    assert (other.phase.numpy() == plan.phase).all()


def test_numbers_chosen_in_tensors_keep_float64() -> None:
    condition = torch.tensor([True, False])
    assert choose(condition, 0.1, 0.7).tolist() == [0.1, 0.7]
    assert choose(condition.numpy(), 0.1, 0.7).tolist() == [0.1, 0.7]


def test_lengths_are_those_of_numpy_bit_for_bit() -> None:
    vectors = np.random.default_rng(0).normal(size=(1000, 3))
    assert library_of(vectors) is np
    assert (norm(vectors) == np.linalg.norm(vectors, axis=1)).all()
