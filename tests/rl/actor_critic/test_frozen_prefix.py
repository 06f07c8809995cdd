"""Off-policy learning around a frozen vision-language model: each observation is encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards import rewarded

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.policies import FinetuneConfig, LoRAConfig, ModelInput
from pitune.policies.network.config import Family
from pitune.rl.actor_critic.critic_input import encode_rows, stored_prefix
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import ENV, vision_policy

LEARNERS = pytest.mark.parametrize("name", ["wsrl", "dgn"])
FAMILIES = pytest.mark.parametrize("family", ["pi0", "pi05"])
FROZEN = FinetuneConfig(trainable=("action_expert", "projections"))


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("demonstrations") / "pictures.safetensors"
    rl.collect_demonstrations(envs.make(replace(ENV, max_episode_steps=20)), 3, seed=0).save(file)
    return file


@pytest.fixture
def new(small_preset: Callable, demonstrations: Path) -> Callable[..., rl.Algorithm[Any]]:
    """Make an algorithm around a policy of which the vision-language model is frozen."""

    def make(
        name: str, family: Family = "pi0", finetune: FinetuneConfig = FROZEN, **changes: Any
    ) -> rl.Algorithm[Any]:
        policy = vision_policy(family)
        policies.apply_finetuning(policy, finetune)
        config = small_preset(name).with_demonstrations(demonstrations)
        torch.manual_seed(0)
        return rl.make(with_settings(config, changes), policy)

    return make


def learned(algorithm: rl.Algorithm[Any], num: int = 3) -> list[dict[str, float]]:
    """Return the metrics of updates on as many rollouts."""
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0)
    torch.manual_seed(0)
    return [algorithm.update(rewarded(rollouts.collect())) for _ in range(num)]


@LEARNERS
@FAMILIES
def test_what_was_kept_teaches_the_same_as_encoding_anew(
    name: str, family: Family, new: Callable
) -> None:
    kept, anew = (new(name, family, keep_prefix=keep) for keep in (True, False))
    for first, second in zip(learned(kept), learned(anew), strict=True):
        assert first == pytest.approx(second, rel=1e-3, abs=1e-4)
    stored = [a.learner.off_policy.replay.all() for a in (kept, anew)]
    for place in ("obs", ("next", "obs")):
        assert set(stored[0][place].keys()) == {"model_input", "prefix"}
        assert set(stored[0][place]["model_input"].keys()) == {"state", "robot_state"}
        assert set(stored[1][place].keys()) == {"model_input"}
        assert {"images", "tokens"} < set(stored[1][place]["model_input"].keys())
    start = vision_policy(family).state_dict()
    now, other = (a.actor.policy.state_dict() for a in (kept, anew))
    assert any(not torch.equal(now[key], start[key]) for key in start)
    assert all(torch.allclose(now[key], other[key], atol=1e-4) for key in start)


@LEARNERS
def test_each_observation_is_encoded_once(
    name: str, new: Callable, encoded: list[int], demonstrations: Path
) -> None:
    """One prefix for each decision, each last observation and each demonstrated step."""
    algorithm = new(name, cloning_coefficient=0.5)
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0)
    steps = len(rl.Demonstrations.load(demonstrations).action)
    for number in range(3):
        encoded.clear()
        rollout = rewarded(rollouts.collect())
        assert sum(encoded) == 16
        encoded.clear()
        metrics = algorithm.update(rollout)
        last = rollout["next", "done"].squeeze(-1).clone()
        last[:, -1] = True
        reads = number == {"dgn": 0, "wsrl": 1}[name]  # the noise's first fit; the first cloning
        assert sum(encoded) == int(last.sum()) + steps * reads
    assert metrics["rounds"] > 1
    assert metrics["cloning_loss"] > 0


@LEARNERS
def test_a_frozen_prefix_that_is_not_kept_is_encoded_once_in_a_round(
    name: str, new: Callable, encoded: list[int]
) -> None:
    learner = new(name, keep_prefix=False).learner
    learner.push(rl.Rollouts(envs.make(ENV), new(name), 4, seed=0).collect())
    learner.num_rounds = learner.config.actor_every - 1  # the next one steps the policy too
    encoded.clear()
    learner.learn(1)
    assert sum(encoded) == 2 * learner.off_policy.config.minibatch_size


@FAMILIES
def test_a_kept_prefix_is_that_of_its_own_observation(family: Family, new: Callable) -> None:
    algorithm = new("wsrl", family)
    policy = algorithm.actor.policy
    rollout = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0).collect()
    assert rollout["next", "done"][:, :-1].any()  # ends inside, where the next decision is another
    algorithm.learner.push(rollout)
    stored = algorithm.learner.off_policy.replay.all()
    valid = ~rollout["next", "invalid"].squeeze(-1)
    for rows, seen in (
        (stored["obs"], rollout),
        (stored["next", "obs"], sub_dict(rollout, "next")),
    ):
        with torch.no_grad():
            ours, direct = (
                encode_rows(policy, rows),
                policy.encode(ModelInput.of(sub_dict(seen, valid))),
            )
        assert torch.allclose(ours.features, direct.features, atol=1e-5)
        for layer, expected in zip(ours.cache, direct.cache, strict=True):
            for tensor, value in zip(layer, expected, strict=True):
                assert torch.allclose(tensor, value, atol=1e-5)


@pytest.mark.parametrize(
    "finetune",
    [
        FinetuneConfig(trainable=("all",)),
        FinetuneConfig(trainable=("action_expert", "vision")),
        FinetuneConfig(trainable=(), lora=LoRAConfig(rank=2, targets=("*language_model*q_proj",))),
    ],
    ids=["all", "vision", "lora"],
)
def test_what_is_trained_is_never_kept(finetune: FinetuneConfig, new: Callable) -> None:
    algorithm = new("wsrl", finetune=finetune)
    assert not algorithm.actor.policy.prefix_is_frozen
    assert learned(algorithm)[-1]["rounds"] > 1
    rows = algorithm.learner.off_policy.replay.all()["obs"]
    assert stored_prefix(rows) is None
    assert {"images", "tokens"} < set(rows["model_input"].keys())


def test_a_state_policy_has_no_prefix_to_keep(tiny_policy: Callable) -> None:
    policy = tiny_policy().requires_grad_(False)
    assert not policy.prefix_is_frozen
    with pytest.raises(ValueError, match="reads its state alone and has no prefix"):
        policy.encode_prefix(policy.model_input({"state": torch.zeros(1, 4)}))


def test_steering_learns_from_demonstrations_of_a_policy_with_a_prompt(new: Callable) -> None:
    """Their words are the tasks that the file holds; no policy keeps any."""
    algorithm = new("dsrl", offline_share=0.5)
    assert learned(algorithm)[-1]["q_loss"] > 0
    assert algorithm.off_policy.demonstrations is not None


def test_pictures_are_bytes_in_rollout_and_memory(
    small_preset: Callable, demonstrations: Path
) -> None:
    states, actions = torch.randn(50, 4), torch.randn(50, 2)
    policy = policies.small_policy(
        states,
        actions,
        action_horizon=4,
        sampler=policies.SamplerConfig(flow_steps=2, execution_horizon=2),
        cameras=("front", "wrist"),
        image_size=20,
        vlm=policies.SmallVLMConfig(patch_size=10),
    )
    config = small_preset("wsrl").with_demonstrations(demonstrations)
    algorithm: Any = rl.make(with_settings(config, {"keep_prefix": False}), policy)
    rollout = rl.Rollouts(envs.make(ENV), algorithm, 4, seed=0).collect()
    assert rollout["model_input", "images"].dtype == torch.uint8
    algorithm.update(rewarded(rollout))
    rows = algorithm.learner.off_policy.replay.all()
    for place in ("obs", ("next", "obs")):
        assert rows[place]["model_input", "images"].dtype == torch.uint8
