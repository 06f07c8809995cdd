"""`recap`: its data, its labels, the policy that it makes, and its negative controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from pitune import envs, policies, rl
from pitune.policies import Actor, FlowPolicy, NetworkOptions
from pitune.policies.flow.guidance import GuidanceConfig
from pitune.policies.network.options.add import network_with_options
from pitune.policies.network.options.tokens.conditioning import ConditioningConfig
from pitune.rl import Recap, RecapConfig
from pitune.rl.algorithms.recap.learner import with_indicator
from pitune.rl.experience.attempts import collect_attempts
from pitune.rl.experience.demonstrations import Demonstrations

CLONING = rl.BCConfig(minibatch_size=8, gradient_steps=2, condition_dropout=0.3)


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of attempts on `mock/Reach`, of which many fail."""
    file = tmp_path_factory.mktemp("attempts") / "attempts.safetensors"
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=20, num_workers=0))
    collect_attempts(env, 60, 0, error_share=0.7).save(file)
    return file


def new(policy: FlowPolicy, file: Path, **changes: Any) -> Recap:
    torch.manual_seed(0)
    usual = RecapConfig(demonstrations=file, value_steps=20, cloning=CLONING, advantage_steps=4)
    return Recap(replace(usual, **changes), policy)


def cloned(algorithm: Recap, monkeypatch: pytest.MonkeyPatch) -> list[TensorDict]:
    """Return the list that every cloned minibatch is added to."""
    found: list[TensorDict] = []
    monkeypatch.setattr(algorithm, "step", Spy(algorithm.step, found))
    return found


class Spy:
    def __init__(self, step: Any, found: list[TensorDict]) -> None:
        self.step, self.config, self.found = step, step.config, found
        self.num_steps = 0

    def __call__(self, chunks: TensorDict) -> float:
        self.found.append(chunks)
        return 0.0


def rollout_of(algorithm: rl.Algorithm[Any], num_chunks: int = 10) -> Any:
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0))
    return rl.Rollouts(env, algorithm, num_chunks, seed=0).collect()


# The policy


def test_a_checkpoint_gets_an_indicator_that_changes_no_number(tiny_policy: Callable) -> None:
    before = tiny_policy()
    after = with_indicator(before, scale=None)
    assert before.network.config.options == NetworkOptions()
    assert after.network.config.options.conditioning.kinds == ("advantage",)
    inputs, noise = before.model_input({"state": torch.rand(5, 4)}), torch.randn(5, 2, 2)
    assert torch.equal(after.sample_actions(inputs, noise), before.sample_actions(inputs, noise))
    assert after.network.action_out_proj.weight is before.network.action_out_proj.weight


def test_the_policy_acts_with_the_positive_indicator_and_the_guidance(
    tiny_policy: Callable, attempts: Path
) -> None:
    policy = tiny_policy()
    negative = replace(policy.sampler, guidance=GuidanceConfig(advantage="negative"))
    policy = with_indicator(policy, None).replace(sampler=negative)
    deployed = new(policy, attempts, guidance_scale=1.5).deployed_policy()
    assert deployed.sampler.guidance == GuidanceConfig(advantage="positive", scale=1.5)
    own = replace(negative, guidance=GuidanceConfig(scale=0.5))
    kept = new(policy.replace(sampler=own), attempts).deployed_policy()
    assert kept.sampler.guidance.scale == 0.5


def test_an_indicator_that_is_not_trained_is_refused(tiny_policy: Callable, attempts: Path) -> None:
    policy = with_indicator(tiny_policy(), None)
    policy.network.options.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"'conditioning' is frozen; add it to finetune\.trainable"
    ):
        new(policy, attempts)
    other = NetworkOptions(conditioning=ConditioningConfig(return_bins=3))
    network = network_with_options(tiny_policy().network, other, None)
    with pytest.raises(ValueError, match=r"options\.conditioning=.*cannot be added: the network"):
        new(tiny_policy().replace(network=network), attempts)


# Data and labels


def test_all_data_are_cloned_with_their_indicator(
    tiny_policy: Callable, attempts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = new(tiny_policy(), attempts, cloning=replace(CLONING, gradient_steps=200))
    found = cloned(algorithm, monkeypatch)
    metrics = algorithm.update(rollout_of(algorithm))
    chunks = torch.cat([part["model_input", "condition"] for part in found])
    assert set(chunks.flatten().tolist()) == {0, 1}
    assert float(chunks.float().mean()) == pytest.approx(metrics["positive_share"], abs=0.04)
    assert metrics["positive_share"] == pytest.approx(0.4, abs=0.01)
    assert metrics["decisions"] == len(algorithm.recorded) + len(algorithm.own)
    assert len(algorithm.own) > 0


def test_a_return_token_has_the_bin_of_the_return(
    tiny_policy: Callable, attempts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = NetworkOptions(conditioning=ConditioningConfig(advantage=True, return_bins=5))
    network = network_with_options(tiny_policy().network, both, None)
    changes = {"rollouts": False, "cloning": replace(CLONING, gradient_steps=100)}
    algorithm = new(tiny_policy().replace(network=network), attempts, **changes)
    found = cloned(algorithm, monkeypatch)
    algorithm.update(TensorDict({}, [0]))
    bins = torch.cat([part["model_input", "condition"][:, 1] for part in found])
    assert set(bins.tolist()) == {0, 1, 2, 3, 4}
    assert float((bins == 0).float().mean()) > 0.4  # the failures


def labels(algorithm: Recap) -> tuple[dict[str, float], Tensor]:
    torch.manual_seed(0)
    return algorithm.labeled(algorithm.recorded)[:2]


def test_positive_decisions_are_of_better_episodes_and_the_controls_are_not(
    tiny_policy: Callable, attempts: Path
) -> None:
    shares = {}
    for indicator in ("advantage", "inverted", "shuffled"):
        algorithm = new(tiny_policy(), attempts, rollouts=False, indicator=indicator)
        metrics, label = labels(algorithm)
        assert int(label.sum()) == pytest.approx(0.4 * len(label), abs=2)
        shares[indicator] = metrics["positive_solved"] - metrics["solved_share"]
    assert shares["advantage"] > 0.1
    assert shares["inverted"] < -0.1
    assert abs(shares["shuffled"]) < 0.06


def test_corrections_are_positive(tiny_policy: Callable, attempts: Path, tmp_path: Path) -> None:
    table = rl.Demonstrations.load(attempts)
    corrected = torch.zeros(len(table.action), dtype=torch.bool)
    corrected[10:40] = True
    replace(table, intervention=corrected).save(tmp_path / "corrected.safetensors")
    algorithm = new(tiny_policy(), tmp_path / "corrected.safetensors", rollouts=False)
    _, label = labels(algorithm)
    assert label[10:40].tolist() == [1] * 30
    assert 0 < float(label.float().mean()) < 0.6


@pytest.mark.parametrize("num_tasks", [1, 2])
def test_a_file_is_read_once_with_the_tasks_of_its_steps(
    num_tasks: int,
    tiny_policy: Callable,
    attempts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = Demonstrations.load(attempts)
    task = table.episode % num_tasks
    own = {key: value for key, value in table.obs.items() if key != "task_id"}
    obs = own if num_tasks == 1 else {**own, "task_id": task}
    replace(table, obs=obs).save(tmp_path / "own.safetensors")
    load, files = Demonstrations.load, []

    def counted(path: Path) -> Demonstrations:
        files.append(path)
        return load(path)

    monkeypatch.setattr(Demonstrations, "load", counted)
    algorithm = new(tiny_policy(), tmp_path / "own.safetensors")
    assert files == [tmp_path / "own.safetensors"]
    assert torch.equal(algorithm.recorded["task"], task)
    assert set(algorithm.recorded.keys()) >= {"model_input", "action", "task"}
    assert "task_id" not in algorithm.recorded.keys()


def test_the_oldest_own_episodes_are_dropped(tiny_policy: Callable, attempts: Path) -> None:
    algorithm = new(tiny_policy(), attempts, capacity=30)
    rollout = rollout_of(algorithm)
    for _ in range(3):
        algorithm.update(rollout)
        assert 0 < len(algorithm.own) <= 30


def test_the_value_explains_returns(tiny_policy: Callable, attempts: Path) -> None:
    algorithm = new(tiny_policy(), attempts, rollouts=False, value_steps=400)
    metrics, _ = labels(algorithm)
    assert metrics["explained_variance"] > 0.15
    untrained = new(tiny_policy(), attempts, rollouts=False, value_steps=0)
    metrics, _ = labels(untrained)
    assert metrics["explained_variance"] < 0.1
    assert "value_loss" not in metrics


# Settings


def test_offline_collects_nothing(tiny_policy: Callable, attempts: Path) -> None:
    config = rl.registry.entry("recap").variant("offline", RecapConfig(demonstrations=attempts))
    algorithm = rl.make(config, tiny_policy())
    assert not algorithm.needs.rollouts
    assert rollout_of(algorithm).batch_size == (4, 0)
    assert Recap.needs.whole_episodes


def test_settings_that_do_not_apply_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cloning.ema_decay=0.9 does not apply to recap"):
        RecapConfig(cloning=rl.BCConfig(ema_decay=0.9))
    with pytest.raises(ValueError, match="must have bins from at most -1 to at least 0"):
        RecapConfig(value=replace(RecapConfig().value, low=-0.5))
    with pytest.raises(ValueError, match=r"positive_share=1.0 must be above 0 and below 1"):
        RecapConfig(positive_share=1.0)


# Learning


@pytest.mark.slow
def test_recap_beats_cloning_and_an_inverted_indicator_declines(tmp_path: Path) -> None:
    """On attempts of which 70 % of the segments are random."""
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=50, num_workers=0))
    table = collect_attempts(env, 150, 0, error_share=0.7)
    table.save(tmp_path / "attempts.safetensors")
    cloning = rl.BCConfig(gradient_steps=400, minibatch_size=128, decay_steps=400)
    rates = {}
    for name in ("bc", "advantage", "inverted"):
        torch.manual_seed(0)
        sampler = policies.SamplerConfig()
        policy = policies.small_policy(
            table.obs["state"], table.action, action_horizon=4, sampler=sampler
        )
        file = tmp_path / "attempts.safetensors"
        config: rl.AlgorithmConfig = replace(cloning, demonstrations=file)
        if name != "bc":
            config = RecapConfig(
                demonstrations=file,
                rollouts=False,
                advantage_steps=4,
                indicator=name,  # type: ignore[arg-type]
                cloning=replace(cloning, condition_dropout=0.3),
            )
        algorithm = rl.make(config, policy)
        algorithm.update(rl.Rollouts(env, algorithm, 5, seed=0).collect())
        found = rl.evaluate(env, Actor(algorithm.deployed_policy()), 200, seed=1)
        rates[name] = found.success_rate or 0.0
    assert rates["advantage"] > rates["bc"] + 0.2
    assert rates["inverted"] < rates["bc"] - 0.1
