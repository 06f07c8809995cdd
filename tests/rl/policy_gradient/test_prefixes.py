"""On-policy learning around a frozen VLM: each decision is encoded once, by the actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pitune import envs, policies, rl
from pitune.experiments.benchmarks.update import with_settings
from pitune.policies import FinetuneConfig, FlowSDEConfig, LikelihoodActor, host_prefixes
from pitune.policies.network.config import Family
from pitune.policies.network.context import stored_prefix
from pitune.rl.config import PrefixConfig
from pitune.rl.policy_gradient.prefixes import plan_prefixes
from pitune.rl.policy_gradient.reference import Reference
from vision_policies import ENV, vision_policy

CASES = [
    ("ppo", "pi0"),
    ("ppo", "pi05"),
    ("grpo", "pi0"),
    ("grpo", "pi05"),
    ("fpo", "pi0"),
    ("fpo", "pi05"),
    ("epo", "pi0"),
    ("filtered_bc", "pi0"),
    ("filtered_bc", "pi05"),
]
CASE = pytest.mark.parametrize(("name", "family"), CASES)
FROZEN = FinetuneConfig(trainable=("action_expert", "projections"))
REGULARIZED = {"kl_coefficient": 0.1, "bc_coefficient": 0.1}


@pytest.fixture
def new(small_preset: Callable) -> Callable[..., rl.Algorithm[Any]]:
    """Make an algorithm around a policy of which the VLM is frozen."""

    def make(
        name: str, family: Family = "pi0", finetune: FinetuneConfig = FROZEN, **changes: Any
    ) -> rl.Algorithm[Any]:
        policy = vision_policy(family)
        policies.apply_finetuning(policy, finetune)
        torch.manual_seed(0)
        return rl.make(with_settings(small_preset(name), changes), policy)

    return make


def solved(rollout: Any) -> Any:
    """Let every second environment succeed at the ends of its episodes, with a reward."""
    rollout = rollout.clone()
    done = rollout["next", "done"]
    wins = done & (torch.arange(len(done)) % 2 == 0)[:, None, None]
    rollout["next", "success"] = wins
    reward = torch.zeros_like(rollout["next", "reward_steps"])
    reward[..., :1] = wins.float()
    rollout["next", "reward_steps"] = reward
    return rollout


def learned(algorithm: rl.Algorithm[Any], num: int = 3) -> list[dict[str, float]]:
    """Return the metrics of updates on as many rollouts."""
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0)
    torch.manual_seed(0)
    return [algorithm.update(solved(rollouts.collect())) for _ in range(num)]


@CASE
def test_a_kept_prefix_teaches_exactly_as_encoding_anew(
    name: str, family: Family, new: Callable
) -> None:
    kept, anew = new(name, family), new(name, family, prefix_gib=0.0)
    for first, second in zip(learned(kept), learned(anew), strict=True):
        assert first == pytest.approx(second, rel=1e-5, abs=1e-6, nan_ok=True)
    assert kept.actor.keep_prefix
    assert not anew.actor.keep_prefix
    now, other = (a.actor.policy.state_dict() for a in (kept, anew))
    start = vision_policy(family).state_dict()
    assert any(not torch.equal(now[key], start[key]) for key in start)
    for key, value in now.items():
        assert torch.allclose(value, other[key], atol=1e-6), key


ON_HOST = {"prefix_gib": 1e-6}
"""Memory for no rollout, so that the host holds its prefixes."""


@CASE
def test_a_prefix_of_the_host_teaches_exactly_as_one_of_the_device(
    name: str, family: Family, new: Callable
) -> None:
    """Bit for bit."""
    kept, held = new(name, family), new(name, family, **ON_HOST)
    for first, second in zip(learned(kept), learned(held), strict=True):
        assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)
    assert held.actor.prefixes_on_host
    assert not kept.actor.prefixes_on_host
    now, other = (a.actor.policy.state_dict() for a in (kept, held))
    start = vision_policy(family).state_dict()
    assert any(not torch.equal(now[key], start[key]) for key in start)
    for key, value in now.items():
        assert torch.equal(value, other[key]), key


def test_a_wrong_prefix_of_the_host_would_be_seen(
    new: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above: rows of other decisions."""
    kept, held = new("ppo"), new("ppo", **ON_HOST)
    chosen = host_prefixes._gathered
    monkeypatch.setattr(
        host_prefixes, "_gathered", lambda prefix, index, device: chosen(prefix, index * 0, device)
    )
    assert learned(kept) != learned(held)


@CASE
@pytest.mark.parametrize("place", [{}, ON_HOST], ids=["device", "host"])
@pytest.mark.parametrize("regularized", [False, True], ids=["plain", "regularized"])
def test_each_decision_is_encoded_once(
    name: str,
    family: Family,
    regularized: bool,
    place: dict[str, float],
    new: Callable,
    encoded: list[int],
) -> None:
    """One prefix for each decision, and for critics one for each last observation."""
    changes = REGULARIZED if regularized and name in ("ppo", "epo") else {}
    algorithm = new(name, family, **changes, **place)
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0)
    for _ in range(2):
        encoded.clear()
        rollout = rollouts.collect()
        num_decisions = rollout.batch_size.numel()
        assert sum(encoded) == num_decisions
        encoded.clear()
        metrics = algorithm.update(solved(rollout))
        last = rollout["next", "done"].squeeze(-1).clone()
        last[:, -1] = True
        critic = name in ("ppo", "fpo", "epo")
        assert sum(encoded) == (int(last.sum()) if critic else 0)
    steps = metrics.get("gradient_steps", metrics.get("cloned_chunks"))
    assert steps is not None
    assert steps > 0


def test_without_the_budget_each_gradient_step_encodes(new: Callable, encoded: list[int]) -> None:
    """The control of the test above."""
    algorithm = new("ppo", prefix_gib=0.0)
    rollout = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0).collect()
    algorithm.num_updates = algorithm.config.critic_warmup
    encoded.clear()
    metrics = algorithm.update(solved(rollout))
    assert sum(encoded) > metrics["gradient_steps"] * algorithm.config.update.minibatch_size


def test_a_rollout_of_the_host_has_a_note(new: Callable) -> None:
    rollouts = rl.Rollouts(envs.make(ENV), new("ppo", **ON_HOST), 6, seed=0)
    (note,) = rollouts.notes
    assert "more than prefix_gib=1e-06, so the host holds them" in note


@pytest.mark.parametrize("stored", ["device", "host", "nowhere"])
@pytest.mark.parametrize("place", [{}, ON_HOST], ids=["device", "host"])
def test_pending_decisions_of_a_checkpoint_join_those_of_a_new_rollout(
    stored: str, place: dict[str, float], new: Callable
) -> None:
    """Wherever the prefixes of both are. Without those of one, none have any."""
    settings = {"device": {}, "host": ON_HOST, "nowhere": {"prefix_gib": 0.0}}[stored]
    parts = []
    before, after = new("grpo", **settings), new("grpo", **place)
    for algorithm in (before, after):
        rollout = solved(rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0).collect())
        parts.append(algorithm.prepare(rollout)[0])
    before.pending = parts[:1]
    after.load_extra_state(before.extra_state())
    after.pending.append(parts[1])
    batch = after._whole_batch()
    assert len(batch) == len(parts[0]) + len(parts[1]) > 0
    assert ("prefix" in batch.keys()) == (stored != "nowhere")
    if stored != "nowhere":
        expected = torch.cat([part["prefix", "keys"] for part in parts])
        assert torch.equal(batch["prefix", "keys"], expected)


def test_a_rollout_beyond_the_budget_is_encoded_anew_with_a_note(new: Callable) -> None:
    algorithm = new("ppo", prefix_gib=1e-6, prefix_host_gib=1e-6)
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0)
    assert not algorithm.actor.keep_prefix
    assert len(rollouts.notes) == 1
    assert "of 24 decisions need" in rollouts.notes[0]
    assert "prefix_gib=1e-06 and prefix_host_gib=1e-06" in rollouts.notes[0]
    assert "raise one of them or lower num_chunks" in rollouts.notes[0]
    assert "prefix" not in rollouts.collect().keys()


@pytest.mark.parametrize("trainable", [("all",), ("action_expert", "vision")])
def test_a_trained_encoder_has_no_kept_prefix(trainable: tuple, new: Callable) -> None:
    algorithm = new("ppo", finetune=FinetuneConfig(trainable=trainable))
    rollouts = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0)
    assert rollouts.notes == []
    assert "prefix" not in rollouts.collect().keys()
    with pytest.raises(ValueError, match="only while the VLM is frozen"):
        algorithm.actor.keep_prefixes()


def test_a_policy_of_states_has_no_prefix(tiny_policy: Callable) -> None:
    actor = LikelihoodActor(tiny_policy(), FlowSDEConfig())
    assert plan_prefixes(actor, 100, PrefixConfig()) == []
    assert actor.out_keys == ["action", "chain", "action_log_prob"]


def test_acting_never_reads_the_prefix_of_an_earlier_decision(new: Callable) -> None:
    """A collector carries the entries of a decision into the input of the next one."""
    algorithm = new("ppo")
    rollout = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0).collect()
    columns: Any = rollout.unbind(1)
    row = columns[1].clone()
    row["prefix"] = columns[0]["prefix"]
    torch.manual_seed(0)
    first = algorithm.actor.explore(row.clone(), row["chain"][:, 0])
    torch.manual_seed(0)
    second = algorithm.actor.explore(row.exclude("prefix"), row["chain"][:, 0])
    assert torch.equal(first["chain"], second["chain"])
    # scoring does read it, so a wrong one is seen
    right = algorithm.actor.get_dist(second).log_prob(second["chain"])
    wrong = algorithm.actor.get_dist(row).log_prob(second["chain"])
    assert not torch.allclose(right, wrong)


def test_the_reference_reads_the_same_prefix(new: Callable, encoded: list[int]) -> None:
    algorithm = new("ppo")
    reference = Reference(algorithm.actor)
    rows = rl.Rollouts(envs.make(ENV), algorithm, 6, seed=0).collect().flatten()
    rows = rows.update(reference.cloning_draws(algorithm.actor, len(rows)))
    encoded.clear()
    kept = reference.cloning_loss(algorithm.actor, rows)
    assert not encoded
    assert stored_prefix(rows.exclude("prefix")) is None
    anew = reference.cloning_loss(algorithm.actor, rows.exclude("prefix"))
    assert encoded
    assert torch.allclose(kept, anew, atol=1e-6)
