"""Rewards of demonstrations: those of the environment, and never mixed with others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pitune import envs, rl
from pitune.envs import CheckedEnv
from pitune.envs.mock.reach import Reach
from pitune.envs.registry import SPARSE_REWARD
from pitune.rl import Demonstrations, collect_demonstrations

LEARNERS = ("wsrl", "dgn", "dsrl")


def make_env(reward: envs.config.Reward = "sparse", **options: Any) -> CheckedEnv:
    config = envs.EnvConfig(
        id="mock/Reach", num_envs=4, num_workers=0, reward=reward, max_episode_steps=20
    )
    return envs.make(replace(config, **options))


def learner(name: str, file: Path, small_preset: Callable, policy: Any, share: float) -> Any:
    """Return an off-policy learner with a share of demonstrations in its minibatches."""
    config = small_preset(name).with_demonstrations(file)
    part = config if name == "dsrl" else config.learner
    part = replace(part, off_policy=replace(part.off_policy, offline_share=share))
    config = part if name == "dsrl" else replace(config, learner=part)
    return rl.make(config, policy)


def old_file(file: Path, folder: Path) -> Path:
    """Return the same file as pitune 0.2 wrote it."""
    demonstrations = Demonstrations.load(file)
    old = folder / "old.safetensors"
    tensors = {f"obs.{key}": value for key, value in demonstrations.obs.items()}
    tensors |= {"action": demonstrations.action, "episode": demonstrations.episode}
    save_file(tensors, old, {"tasks": "[]"})
    return old


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_rewards_are_those_that_the_environment_gave(
    reward: envs.config.Reward, tmp_path: Path
) -> None:
    demonstrations = collect_demonstrations(make_env(reward), 6, seed=0)
    assert demonstrations.reward is not None
    assert demonstrations.terminated is not None
    # by hand: the distance after each step, and 1 at success
    state, action = demonstrations.obs["state"], demonstrations.action
    moved = (state[:, :2] + 0.1 * action).clamp(0, 1)
    distance = (moved - state[:, 2:]).norm(dim=-1)
    last = demonstrations._last() == torch.arange(len(action))
    expected = last.float() - (distance if reward == "dense" else 0)
    assert torch.allclose(demonstrations.reward, expected, atol=1e-6)
    assert torch.equal(demonstrations.terminated, last)

    # in a file too
    demonstrations.save(tmp_path / "d.safetensors")
    loaded = Demonstrations.load(tmp_path / "d.safetensors")
    assert loaded.reward is not None
    assert torch.equal(loaded.reward, demonstrations.reward)
    assert loaded.reward_definition == make_env(reward).spec.reward
    second = loaded.after(2)
    assert second.reward is not None
    assert torch.equal(second.reward, expected[demonstrations.episode >= 2]) or reward == "dense"
    assert len(second.reward) == len(second.action)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_transitions_hold_the_rewards_of_their_steps(
    num_steps: int, reward: envs.config.Reward
) -> None:
    demonstrations = collect_demonstrations(make_env(reward), 5, seed=1)
    assert demonstrations.reward is not None
    rows = demonstrations.transitions(num_steps)
    for row, episode in enumerate(demonstrations.episode.tolist()):
        steps = [
            i
            for i in range(row, min(row + num_steps, len(rows)))
            if demonstrations.episode[i] == episode
        ]
        expected = demonstrations.reward[steps].tolist() + [0.0] * (num_steps - len(steps))
        assert rows["reward_steps"][row].tolist() == pytest.approx(expected)
        assert rows["live"][row].tolist() == [j < len(steps) for j in range(num_steps)]
    assert not rows["truncated"].any()
    # success ends every episode, so the default of files without rewards is the same
    if reward == "sparse":
        old = replace(demonstrations, reward=None, terminated=None).transitions(num_steps)
        for key in ("reward_steps", "live", "duration", "terminated", "truncated"):
            assert torch.equal(old[key], rows[key]), key


def test_the_end_of_time_is_no_end_of_the_task() -> None:
    class Endless(Reach):
        """Success ends no episode."""

        def step(
            self, action: Tensor, active: Tensor, pictures: Tensor | None = None
        ) -> envs.StepResult:
            result = super().step(action, active, pictures)
            over = (self.steps >= self.spec.max_episode_steps) & active
            return result._replace(terminated=torch.zeros_like(over), truncated=over)

    demonstrations = collect_demonstrations(CheckedEnv(Endless(2)), 2, seed=0)
    assert torch.bincount(demonstrations.episode).tolist() == [20, 20]
    assert demonstrations.reward is not None
    assert demonstrations.reward.sum() > 2  # the expert stays at the goal
    rows = demonstrations.transitions(4)
    assert not rows["terminated"].any()
    assert rows["truncated"].squeeze(-1).sum() == 2 * 4
    assert torch.equal(rows["reward_steps"][:, 0], demonstrations.reward)


def test_broken_episodes_are_not_demonstrated() -> None:
    class Breaking(Reach):
        def step(
            self, action: Tensor, active: Tensor, pictures: Tensor | None = None
        ) -> envs.StepResult:
            result = super().step(action, active, pictures)
            broken = result.info["success"] & (torch.arange(2) == 0)
            info = {**result.info, "invalid": broken}
            return result._replace(
                terminated=result.terminated & ~broken, truncated=broken, info=info
            )

    starts = []
    for env in (Breaking(2), Reach(2)):
        found = collect_demonstrations(CheckedEnv(env), 2, seed=0)
        firsts = [int((found.episode == number).nonzero()[0]) for number in range(2)]
        starts.append(found.obs["state"][firsts])
    assert torch.equal(starts[0][0], starts[1][1])  # the second environment's


# Definitions


def test_equal_rewards_have_one_definition_and_others_do_not() -> None:
    def of(**changes: Any) -> str:
        config = envs.EnvConfig(id="mock/Reach", num_envs=2, num_workers=0)
        return envs.make(replace(config, **changes)).spec.reward

    assert of() == of(max_episode_steps=7) == of(id="mock/TwoGoals") == SPARSE_REWARD
    dense = of(reward="dense")
    own = of(id="gym/Pendulum-v1", reward="dense")
    options = envs.GymOptions(kwargs={"g": 1.0})
    gravity = of(id="gym/Pendulum-v1", reward="dense", options=options)
    different = [of(), dense, of(reward="dense", max_episode_steps=7), own, gravity]
    assert len(set(different)) == 5
    assert dense == of(reward="dense", num_envs=3, cameras=("front",))


def test_an_environment_made_by_hand_has_none() -> None:
    assert CheckedEnv(Reach(2)).spec.reward == ""
    assert CheckedEnv(Reach(2), reward="distance").spec.reward == "distance"


def test_a_file_names_the_definition_of_its_rewards(tmp_path: Path) -> None:
    file = tmp_path / "d.safetensors"
    collect_demonstrations(make_env("dense"), 2, seed=0).save(file)
    definition = "dense reward of mock/Reach, 20 steps, {'num_tasks': 1}"
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["demonstrations"])["reward"] == definition
    assert Demonstrations.load(file).reward_definition == definition
    assert Demonstrations.load(old_file(file, tmp_path)).reward_definition == SPARSE_REWARD


# Mixing


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize(
    ("recorded", "given", "fits"),
    [
        ("sparse", "sparse", True),
        ("dense", "dense", True),
        ("sparse", "dense", False),
        ("dense", "sparse", False),
        ("old", "dense", False),
        ("old", "sparse", True),
    ],
)
def test_other_rewards_are_refused_where_they_would_be_mixed(
    name: str,
    recorded: Any,
    given: envs.config.Reward,
    fits: bool,
    small_preset: Callable,
    tiny_policy: Callable,
    tmp_path: Path,
) -> None:
    file = tmp_path / "d.safetensors"
    source = make_env("sparse" if recorded == "old" else recorded)
    collect_demonstrations(source, 6, seed=0).save(file)
    file = old_file(file, tmp_path) if recorded == "old" else file
    env = make_env(given)
    algorithm = learner(name, file, small_preset, tiny_policy(), 0.5)
    if fits:
        rollouts = rl.Rollouts(env, algorithm, 4, seed=0)
        algorithm.update(rollouts.collect())
    else:
        with pytest.raises(ValueError, match=r"rewards of demonstrations .* differ"):
            rl.Rollouts(env, algorithm, 4, seed=0)

    # without a share of demonstrations nothing is mixed
    rl.Rollouts(env, learner(name, file, small_preset, tiny_policy(), 0.0), 4, seed=0)


@pytest.mark.parametrize("recorded", ["sparse", "dense"])
def test_cloning_reads_no_rewards(
    recorded: Any, small_preset: Callable, tiny_policy: Callable, tmp_path: Path
) -> None:
    file = tmp_path / "d.safetensors"
    collect_demonstrations(make_env(recorded), 4, seed=0).save(file)
    algorithm = rl.make(small_preset("bc").with_demonstrations(file), tiny_policy())
    for given in ("sparse", "dense"):
        rl.Rollouts(make_env(given), algorithm, 4, seed=0)


def test_a_memory_of_dense_demonstrations_is_in_the_units_of_the_rollouts(
    small_preset: Callable, tiny_policy: Callable, tmp_path: Path
) -> None:
    file = tmp_path / "d.safetensors"
    env = make_env("dense")
    demonstrations = collect_demonstrations(env, 6, seed=0)
    demonstrations.save(file)
    algorithm = learner("wsrl", file, small_preset, tiny_policy(), 0.5)
    algorithm.update(rl.Rollouts(env, algorithm, 4, seed=0).collect())
    memory = algorithm.learner.off_policy.demonstrations
    rows = memory.sample(500)
    assert demonstrations.reward is not None
    stored = rows["reward_steps"][rows["live"]]
    assert stored.min() >= demonstrations.reward.min() - 1e-6
    assert (stored < 0).float().mean() > 0.5
    assert stored.max() > 0.9
