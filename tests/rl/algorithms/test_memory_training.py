"""Fine-tuning and cloning of policies with a memory: every algorithm learns with it or refuses."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_policies import demonstrations_file, memory_policy, recall

from pitune import rl
from pitune.policies import Actor, FlowPolicy
from pitune.policies.recurrence import HISTORY
from pitune.rl.algorithms.bc import CloningStep, clone
from pitune.rl.datasets.config import DataConfig
from pitune.rl.datasets.demonstrations import chunk_source, random_chunks
from pitune.rl.experience.sub_dict import sub_dict
from settings import changed

ABLE = sorted(entry.name for entry in rl.registry.entries() if entry.memory)
OTHERS = sorted(set(rl.presets()) - set(ABLE))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demonstrations_file(tmp_path_factory.mktemp("recall"))


@pytest.fixture
def new(small_preset: Callable, shown: Path) -> Callable[..., rl.Algorithm]:
    def make(name: str, **settings: Any) -> rl.Algorithm:
        config = small_preset(name).with_demonstrations(shown)
        for key, value in settings.items():
            config = changed(config, **{key: value})
        torch.manual_seed(0)
        return rl.make(config, memory_policy())

    return make


def collected(algorithm: rl.Algorithm) -> Any:
    rollouts = rl.Rollouts(recall(), algorithm, 8, seed=0)
    return [rollouts.collect() for _ in range(2)]


def with_successes(rollout: Any) -> Any:
    """Return a rollout in which the episodes of every other environment succeed."""
    rollout = rollout.clone()
    if rollout.batch_size.numel():
        after = sub_dict(rollout, "next")
        after["success"] = after["done"] & (torch.arange(4) % 2 == 0)[:, None, None]
        after["reward_steps"] = after["success"].float() * after["live"]
    return rollout


def test_the_algorithms_that_can_are_those_that_say_so() -> None:
    assert set(ABLE) >= {"bc", "dsrl", "es", "filtered_bc", "fpo", "grpo", "ppo"}
    assert set(OTHERS) >= {"dgn", "epo", "wsrl"}


@pytest.mark.parametrize("name", ABLE)
def test_it_learns_with_a_memory_and_the_ratio_is_one(name: str, new: Callable) -> None:
    algorithm = new(name)
    ratios, start = [], {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    rollouts = rl.Rollouts(recall(), algorithm, 8, seed=0)
    for _ in range(4):
        metrics = algorithm.update(with_successes(rollouts.collect()))
        ratios += [v for k, v in metrics.items() if k == "ratio_deviation"]
    assert all(ratio < 1e-4 for ratio in ratios)
    assert bool(ratios) == (name in {"ppo", "fpo", "grpo"})
    after = algorithm.actor.state_dict()
    moved = {key for key, value in start.items() if not torch.equal(value, after[key])}
    assert moved
    if name in {"ppo", "fpo", "grpo", "filtered_bc", "bc"}:  # reading and writing learn
        memory = "policy.network.options.memory."
        assert {f"{memory}candidate.weight", f"{memory}q_proj.weight"} <= moved


@pytest.mark.parametrize("name", ["ppo", "fpo", "bc", "filtered_bc"])
def test_without_earlier_decisions_the_writing_is_not_trained(name: str, new: Callable) -> None:
    """The control of `memory_decisions`."""
    algorithm = (
        new(name, memory_decisions=1, weight_decay=0.0)
        if "bc" in name
        else new(name, memory_decisions=1)
    )
    writing = algorithm.actor.policy.network.options["memory"].candidate.weight
    before = writing.detach().clone()
    for _ in range(2):
        for rollout in collected(algorithm):
            algorithm.update(with_successes(rollout))
    assert torch.equal(writing, before)


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_refuse_a_memory_by_name(name: str, small_preset: Callable) -> None:
    message = rf"the policy has a memory \(options.memory\), and {name} would not store or train"
    with pytest.raises(ValueError, match=message):
        rl.make(small_preset(name), memory_policy())


def test_dsrl_refuses_demonstrations_beside_decisions(new: Callable) -> None:
    with pytest.raises(ValueError, match=r"offline_share=0\.5 stores demonstrations beside decis"):
        new("dsrl", offline_share=0.5)


@pytest.mark.parametrize("variant", ["sac", "noise_aliased"])
def test_replay_rows_hold_the_memory_of_both_observations(variant: str, new: Callable) -> None:
    algorithm = new("dsrl", variant=variant)
    rollout = collected(algorithm)[1]
    rows = algorithm.rows.of_rollout(rollout)
    width = 2 * 16
    state_dim = algorithm.policy.preprocessor.model_state_dim
    stored = rows["critic_input"][:, state_dim : state_dim + width]
    assert torch.equal(stored, rollout["memory"].reshape(-1, width))
    after = rows["next", "critic_input"][:, state_dim : state_dim + width]
    assert torch.equal(after, rollout["next", "memory"].reshape(-1, width))
    assert torch.equal(after, rollout["written_memory"].reshape(-1, width))
    assert float(after.abs().max()) > 0.1


def test_training_goes_on_alike_from_a_file(new: Callable) -> None:
    first = new("ppo")
    rollouts = collected(first)
    first.update(rollouts[0])
    file = io.BytesIO()
    torch.save(first.training_state(), file)
    file.seek(0)
    second = new("ppo")
    second.actor.policy.load_state_dict(first.actor.policy.state_dict())
    second.load_training_state(torch.load(file, weights_only=True))
    metrics = []
    for algorithm in (first, second):
        torch.manual_seed(1)
        metrics.append(algorithm.update(rollouts[1]))
    assert metrics[0] == metrics[1]


def test_rollouts_are_repeated_with_the_memories_of_their_decisions(new: Callable) -> None:
    algorithm = new("ppo")
    first = rl.Rollouts(recall(), algorithm, 3, seed=0)  # ends in the midst of episodes
    torch.manual_seed(0)
    first.collect()
    state, generator = first.state(), torch.get_rng_state()
    expected = first.collect()
    second = rl.Rollouts(recall(), algorithm, 3, seed=0)
    assert state is not None
    assert second.repeat(state)
    torch.set_rng_state(generator)
    found = second.collect()
    assert float(expected["memory"][:, 0].abs().max()) > 0.1
    for key in ("memory", "written_memory", "chain", "action_log_prob"):
        assert torch.equal(found[key], expected[key]), key


# Cloning


def test_a_minibatch_of_parts_gives_the_same_gradient(shown: Path) -> None:
    gradients = []
    for parts in (1, 3):
        policy = memory_policy()
        torch.manual_seed(0)
        config = rl.BCConfig(minibatch_size=12, num_parts=parts)
        step = CloningStep(policy, config)
        step(chunk_source(policy, shown).draw(12))
        gradients.append([p.grad for p in policy.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_the_burn_in_limits_the_decisions_before_a_chunk(shown: Path) -> None:
    policy = memory_policy()
    torch.manual_seed(0)
    drawn = chunk_source(policy, shown).draw(44)
    assert sub_dict(drawn, HISTORY).batch_size == (44, 5)
    drawn = chunk_source(policy, shown, burn_in=2).draw(44)
    assert sub_dict(drawn, HISTORY).batch_size == (44, 2)
    plain = memory_policy(options=type(policy.network.config.options)())
    assert HISTORY not in chunk_source(plain, shown).draw(44).keys()


def test_a_dataset_that_would_be_streamed_is_refused(tmp_path: Path) -> None:
    from pitune.rl.datasets.recorder import write_demonstrations

    policy = memory_policy()
    demonstrations = rl.collect_demonstrations(recall(), 2, seed=0)
    write_demonstrations(demonstrations, tmp_path / "data", fps=10.0)
    assert len(chunk_source(policy, tmp_path / "data")) == 22
    message = r"more than memory_gib=1e-09, and a policy with a memory reads the decisions before"
    with pytest.raises(ValueError, match=message):
        chunk_source(policy, tmp_path / "data", DataConfig(memory_gib=1e-9))


@pytest.mark.slow
def test_a_cloned_memory_solves_what_a_memoryless_policy_cannot(shown: Path) -> None:
    def cloned(policy: FlowPolicy) -> float:
        torch.manual_seed(0)
        config = rl.BCConfig(learning_rate=3e-3, decay_steps=400, minibatch_size=64)
        table = rl.collect_demonstrations(recall(20), 40, seed=0).preprocess(policy)
        clone(CloningStep(policy, config), random_chunks(policy, table), 400)
        rate = rl.evaluate(recall(20), Actor(policy), 200).success_rate
        assert rate is not None
        return rate

    policy = memory_policy(trained=False)
    plain = memory_policy(options=replace(type(policy.network.config.options)()))
    assert cloned(policy) > 0.6
    assert cloned(plain) < 0.35
