"""The replay memory of a vision-language policy fits by default, or is refused before any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pitune import envs, rl
from pitune.policies import FinetuneConfig, apply_finetuning
from pitune.rl.actor_critic import memory_plan
from pitune.rl.actor_critic.memory_plan import LEAST_ENCODED, plan_memory
from pitune.rl.actor_critic.off_policy_config import OffPolicyConfig
from settings import changed
from vision_policies import ENV, vision_policy

NAMES = pytest.mark.parametrize("name", ["wsrl", "dgn", "dsrl"])
FROZEN = FinetuneConfig(trainable=("action_expert", "projections"))
GIB, CPU = 2**30, torch.device("cpu")


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demonstrations") / "pictures.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, max_episode_steps=20)), 3, seed=0).save(file)
    return file


@pytest.fixture
def new(demonstrations: Path) -> Callable[..., rl.Algorithm[Any]]:
    """Make an algorithm around a policy of which the vision-language model is frozen."""

    def make(name: str, **changes: Any) -> rl.Algorithm[Any]:
        policy = apply_finetuning(vision_policy(), FROZEN)
        config = rl.preset(name).with_demonstrations(demonstrations)
        torch.manual_seed(0)
        return rl.make(changed(config, **changes), policy)

    return make


def memory(algorithm: Any) -> Any:
    return algorithm.off_policy if isinstance(algorithm, rl.DSRL) else algorithm.learner.off_policy


@NAMES
def test_defaults_fit_a_vision_language_policy(name: str, new: Callable) -> None:
    algorithm = new(name)
    replay = memory(algorithm).replay
    (note,) = algorithm.notes()
    assert f"{replay.capacity:,} of capacity=200,000 decisions (encoded observations" in note
    assert "off_policy.memory_gib=4" in note
    rollout = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0).collect()
    algorithm.update(rollout)
    stored = sum(value.nbytes for value in replay.all().flatten_keys(".").values()) / len(replay)
    plan = (algorithm if isinstance(algorithm, rl.DSRL) else algorithm.learner).plan
    assert plan.row_bytes == pytest.approx(stored, rel=0.02)
    assert plan.capacity * plan.row_bytes <= 4 * GIB


@NAMES
def test_a_small_budget_stores_pictures_and_still_learns(name: str, new: Callable) -> None:
    small = {"warmup_decisions": 16, "warmup_rounds": 2, "minibatch_size": 8}
    if name == "dgn":
        small["initial_fit_steps"] = 2
    algorithm = new(name, memory_gib=0.05, **small)
    (note,) = algorithm.notes()
    assert "decisions (not encoded, " in note
    source = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0)
    metrics = [algorithm.update(source.collect()) for _ in range(2)][-1]
    assert metrics["rounds"] > 0
    obs = memory(algorithm).replay.all()
    assert "images" in (obs if name == "dsrl" else obs["obs"])["model_input"].keys()


@NAMES
def test_a_memory_that_holds_no_warm_up_is_refused_at_once(name: str, new: Callable) -> None:
    with pytest.raises(
        ValueError,
        match=r"off_policy.memory_gib=0.001 holds .* raise off_policy.memory_gib",
    ):
        new(name, memory_gib=0.001)


@NAMES
def test_a_memory_that_does_not_fit_the_machine_is_refused_at_once(
    name: str, new: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "available_bytes", lambda device: GIB)
    with pytest.raises(ValueError, match=r"1\.00 GiB are free on the device 'cpu'; lower off"):
        new(name)


def test_a_small_policy_keeps_its_capacity(tiny_policy: Callable) -> None:
    for name in ("wsrl", "dsrl"):
        algorithm = rl.make(rl.preset(name), tiny_policy())
        assert memory(algorithm).replay.capacity == 200_000
        assert algorithm.notes() == []


@pytest.mark.parametrize(
    ("plain", "encoded", "capacity", "is_encoded"),
    [
        (400, None, 200_000, False),
        (903_000, 30_000_000, 4 * GIB // 903_000, False),  # π0 at its full size
        (20_000, 290_000, 4 * GIB // 290_000, True),  # a tiny π0
        (20_000, 20_001, 200_000, True),
    ],
)
def test_the_plan_depends_on_the_size_of_a_decision(
    plain: int, encoded: int | None, capacity: int, is_encoded: bool
) -> None:
    plan = plan_memory(OffPolicyConfig(), CPU, plain=plain, encoded=encoded)
    assert (plan.capacity, plan.encoded) == (capacity, is_encoded)
    few = plan_memory(OffPolicyConfig(capacity=2100), CPU, plain=plain, encoded=encoded)
    assert few.capacity == 2100


def test_demonstrations_take_their_part_of_the_budget() -> None:
    alone = plan_memory(OffPolicyConfig(), CPU, plain=10**6)
    beside = plan_memory(OffPolicyConfig(), CPU, plain=10**6, num_demonstrations=700)
    assert alone.capacity - beside.capacity == 700
    encoded = 4 * GIB // LEAST_ENCODED
    assert plan_memory(OffPolicyConfig(), CPU, plain=1000, encoded=encoded).encoded
    with_demonstrations = plan_memory(
        OffPolicyConfig(), CPU, plain=1000, encoded=encoded, num_demonstrations=1
    )
    assert not with_demonstrations.encoded


def test_rows_in_files_are_bounded_by_the_disk_alone(tmp_path: Path) -> None:
    config = OffPolicyConfig(memory_folder=tmp_path / "new" / "memory", capacity=5000)
    plan = plan_memory(config, CPU, plain=1000, encoded=2000)
    assert plan[:3] == (5000, 2000, True)
    with pytest.raises(ValueError, match=r"are free on the disk of .*; lower off_policy\.capacity"):
        plan_memory(replace(config, capacity=200_000), CPU, plain=10**12)
