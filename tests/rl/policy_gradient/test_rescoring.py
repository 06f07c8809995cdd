"""Old log-probabilities below float32: every ratio is 1 before the first gradient step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs, rl
from pitune.policies import (
    FinetuneConfig,
    FlowMatchingConfig,
    FlowPolicy,
    GemmaConfig,
    SamplerConfig,
    apply_finetuning,
    likelihood_config,
    small_policy,
)
from pitune.rl.experience.sub_dict import sub_dict
from pitune.rl.policy_gradient.rescoring import rescore, rescore_notes, rescores
from settings import changed, stand_still
from vision_policies import ENV, vision_policy

WIDE = GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=2, num_kv_heads=1, head_dim=16)
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("ppo", {}),
    "ppo, one scored step": ("ppo", {"scored_steps": "one"}),
    "ppo, three parts": ("ppo", {"num_parts": 3}),
    "ppo, joint": ("ppo", {"likelihood": likelihood_config("flow_sde", ratio="joint")}),
    "ppo, flow_noise": ("ppo", {"likelihood": likelihood_config("flow_noise")}),
    "ppo, velocity_gaussian": ("ppo", {"likelihood": likelihood_config("velocity_gaussian")}),
    "ppo, all entries": ("ppo", {"likelihood": likelihood_config("flow_sde", noise_entries="all")}),
    "ppo, flow_matching": ("ppo", {"likelihood": FlowMatchingConfig()}),
    "grpo": ("grpo", {"group_size": 2}),
    "grpo, trajectory": ("grpo", {"group_size": 2, "level": "trajectory"}),
    "epo": ("epo", {"num_members": 2}),
    "fpo": ("fpo", {}),
    "fpo, a ratio per draw": ("fpo", {"likelihood": FlowMatchingConfig(num_draws=16)}),
}


def state_policy(dtype: Any = "bfloat16") -> FlowPolicy:
    torch.manual_seed(0)
    policy = small_policy(
        torch.rand(64, 4),
        2 * torch.rand(64, 2) - 1,
        action_horizon=4,
        sampler=SamplerConfig(flow_steps=4, execution_horizon=2),
        expert=WIDE,
    )
    return apply_finetuning(policy, FinetuneConfig(dtype=dtype))


def first_update(
    name: str, policy: FlowPolicy, rescore: bool | None, **changes: Any
) -> tuple[rl.Algorithm[Any], dict[str, float]]:
    """Return an algorithm and the metrics of an update without learning."""
    warmup = {} if name == "grpo" else {"critic_warmup": 0}
    config = changed(
        rl.preset(name),
        minibatch_size=16,
        num_epochs=1,
        rescore=rescore,
        **warmup,
        **changes,
    )
    torch.manual_seed(0)
    algorithm = rl.make(config, policy)
    stand_still(algorithm)
    state_only = envs.EnvConfig(id="mock/Reach", num_envs=12, num_workers=0, max_episode_steps=7)
    env = envs.make(state_only if policy.network.vlm is None else ENV)
    rollout = rl.Rollouts(env, algorithm, 4, seed=0).collect()
    outcome = sub_dict(rollout, "next")
    outcome["reward_steps"] += torch.rand_like(outcome["reward_steps"])
    outcome["success"] = outcome["done"] & (torch.rand(outcome["done"].shape) < 0.5)
    return algorithm, algorithm.update(rollout)


@pytest.mark.parametrize(("name", "changes"), SETTINGS.values(), ids=SETTINGS.keys())
def test_ratios_are_one_before_the_first_step_in_bfloat16(
    name: str, changes: dict[str, Any]
) -> None:
    _, metrics = first_update(name, state_policy(), None, **changes)
    assert metrics["gradient_steps"] >= 1
    assert metrics["ratio_deviation"] < 1e-6
    assert metrics["log_prob_gap_max"] >= metrics["log_prob_gap"] >= 0


@pytest.mark.parametrize("name", ["ppo", "grpo", "epo", "fpo"])
def test_ratios_of_a_vision_language_policy_are_one_in_bfloat16(name: str) -> None:
    policy = apply_finetuning(vision_policy(), FinetuneConfig(dtype="bfloat16"))
    changes = {"grpo": {"group_size": 2}, "epo": {"num_members": 2}}.get(name, {})
    _, metrics = first_update(name, policy, None, **changes)
    assert metrics["ratio_deviation"] < 1e-6


@pytest.mark.parametrize(
    ("name", "changes"), [("ppo", {}), ("grpo", {"group_size": 2}), ("epo", {"num_members": 2})]
)
def test_without_rescoring_ratios_stray_in_bfloat16(name: str, changes: dict[str, Any]) -> None:
    """Otherwise the tests above would show nothing."""
    _, metrics = first_update(name, state_policy(), False, **changes)
    assert metrics["ratio_deviation"] > 5e-3
    assert "log_prob_gap" not in metrics


def test_others_of_a_population_are_rescored_as_the_members_that_acted() -> None:
    algorithm, _ = first_update("epo", state_policy(), None, num_members=2)
    assert isinstance(algorithm, rl.EPO)
    with torch.no_grad():
        algorithm.actor.population.to_policy.normal_(std=0.3)
    env = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=12, num_workers=0))
    rollout = rl.Rollouts(env, algorithm, 4, seed=0).collect()
    rollout["next", "member"] = rollout["member"]
    others = algorithm.others(rollout)
    acted = others.copy().set("member", torch.ones_like(others["member"]))
    with torch.no_grad():
        log_prob = algorithm.actor.get_dist(acted).log_prob(acted["chain"])
    assert torch.allclose(others["action_log_prob"], log_prob, atol=0.05)
    assert not others["member"].any()
    assert others["center"].abs().max() > 0.1  # the master is another policy


@pytest.mark.parametrize("name", ["ppo", "grpo", "epo", "fpo"])
def test_only_a_policy_below_float32_is_rescored_and_noted(name: str) -> None:
    changes = {"grpo": {"group_size": 2}, "epo": {"num_members": 2}}.get(name, {})
    algorithm, metrics = first_update(name, state_policy("float32"), None, **changes)
    assert "log_prob_gap" not in metrics
    assert not any("rescore" in note for note in algorithm.notes())
    algorithm, _ = first_update(name, state_policy(), None, **changes)
    assert any("computes in bfloat16: old log-probabilities" in n for n in algorithm.notes())
    assert rescores(algorithm.actor.policy, None)
    assert not rescores(algorithm.actor.policy, False)
    assert "stray from 1 by 0.1 to 0.2" in rescore_notes(algorithm.actor.policy, False)[0]


@pytest.mark.parametrize(("num", "size"), [(10, 4), (8, 4), (3, 4), (4, 4), (1, 1), (0, 4)])
def test_every_pass_has_the_rows_of_a_training_forward(num: int, size: int) -> None:
    sizes: list[int] = []

    def score(part: TensorDictBase) -> Tensor:
        sizes.append(len(part))
        return part["action_log_prob"] + part["offset"]

    batch = TensorDict(
        {"action_log_prob": torch.zeros(num), "offset": torch.arange(num).float()}, [num]
    )
    found, metrics = rescore(batch, score, size)
    assert torch.equal(found["action_log_prob"], torch.arange(num).float())
    assert not batch["action_log_prob"].any()
    assert set(sizes) <= {min(num, size)}
    if num:
        assert metrics["log_prob_gap_max"] == num - 1
