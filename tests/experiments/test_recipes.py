"""`recipes`: which settings an environment and an algorithm get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pitune import rl
from pitune.experiments.recipes import recipe


@pytest.mark.parametrize("env_id", ["mujoco/PickCube", "metaworld/reach-v3", "mock/Reach"])
def test_off_policy_learners_get_short_rollouts_and_others_none_other(env_id: str) -> None:
    settings = recipe(env_id)
    for name in rl.presets():
        own = settings.for_algorithm(name)
        if name in ("dsrl", "wsrl", "dgn"):
            decisions = own.num_chunks * own.env.num_envs  # in an iteration
            assert own.num_chunks == 5
            assert own.num_iterations * decisions == (40_000 if name == "dsrl" else 20_000)
            assert own.eval_every * decisions == 1000
        elif rl.registry.entry(name).whole_episodes:  # such rollouts are about half as long
            assert own == replace(settings, num_iterations=2 * settings.num_iterations)
        else:
            assert own == settings


def test_every_algorithm_that_reads_demonstrations_is_told_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "demonstrations.safetensors"
    found = {}
    for name in rl.presets():
        found[name] = recipe("mujoco/PickCube").algorithm(name, tmp_path)
    assert found["bc"].demonstrations == file  # type: ignore[attr-defined]
    assert found["dsrl"].off_policy.demonstrations == file  # type: ignore[attr-defined]
    assert found["wsrl"].learner.off_policy.demonstrations == file  # type: ignore[attr-defined]
    unseen = tmp_path / "guidance.safetensors"
    assert found["dgn"].learner.off_policy.demonstrations == unseen  # type: ignore[attr-defined]
    assert found["ppo"] == recipe("mujoco/PickCube").ppo
    assert found["filtered_bc"] == rl.preset("filtered_bc")


@pytest.mark.parametrize("env_id", ["mujoco/PickCube", "metaworld/reach-v3", "mock/Reach"])
@pytest.mark.parametrize("name", ["dsrl", "wsrl", "dgn", "ppo"])
def test_a_hurried_run_learns_something(env_id: str, name: str) -> None:
    settings = recipe(env_id).for_algorithm(name).fast()
    decisions = settings.num_iterations * settings.num_chunks * settings.env.num_envs
    assert settings.num_iterations >= 6
    assert settings.eval_every == settings.num_iterations
    if name != "ppo":
        assert decisions >= rl.OffPolicyConfig().warmup_decisions + 1000


@pytest.mark.parametrize(
    "env_id", ["mujoco/PickCube", "maniskill/PickCube-v1", "metaworld/reach-v3"]
)
@pytest.mark.parametrize("num_envs", [100, 16_384])
def test_episodes_of_off_policy_learners_end_between_evaluations(
    env_id: str, num_envs: int
) -> None:
    settings = recipe(env_id)
    settings = replace(settings, env=replace(settings.env, num_envs=num_envs))
    own = settings.for_algorithm("wsrl")
    assert own.env.num_envs == 25
    assert own.eval_every * own.num_chunks * 4 >= 160  # steps; the longest time limit is 150
    assert own.eval_episodes % own.env.num_envs == 0
