"""`learner`: the inputs of the critics and the policy's loss, term by term and by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from observations import observed
from pitune import policies
from pitune.policies import FinetuneConfig, FlowPolicy, ModelInput
from pitune.rl import ActorCriticConfig, OffPolicyConfig
from pitune.rl.actor_critic.actor import ExploringActor
from pitune.rl.actor_critic.learner import FlowActorCritic
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import sub_dict
from vision_policies import vision_policy

OFF_POLICY = OffPolicyConfig(
    capacity=50, minibatch_size=8, num_critics=2, hidden=(8,), warmup_decisions=0
)


def new(policy: FlowPolicy, time_limit: Any = "bootstrap", **changes: Any) -> FlowActorCritic:
    torch.manual_seed(0)
    config = ActorCriticConfig(
        off_policy=replace(OFF_POLICY, time_limit=time_limit), anchor_coefficient=0.0
    )
    return FlowActorCritic(policy, replace(config, **changes))


def rows(policy: FlowPolicy) -> TensorDict:
    """Return six sampled rows whose observations differ from the next ones."""
    torch.manual_seed(1)
    now, later = (observed(policy, torch.rand(6, 4)).select("model_input") for _ in range(2))
    after = TensorDict({"obs": later, "elapsed": torch.full((6, 1), 0.5)}, [6])
    horizon = policy.sampler.execution_horizon
    return TensorDict(
        {"obs": now, "next": after, "elapsed": torch.full((6, 1), 0.25)}
        | {"chunk": torch.rand(6, 2 * horizon)},
        [6],
    )


def normalized(policy: FlowPolicy, actions: Tensor) -> Tensor:
    """Return executed actions (N, h, d) [robot units] as chunks (N, h * d), by hand."""
    scaling = policy.preprocessor
    return ((actions - scaling.action_offset) / scaling.action_scale).flatten(1)


# The critics


@pytest.mark.parametrize("horizon", [2, 3])
def test_the_next_value_is_asked_at_the_next_observation_with_its_own_chunk(
    horizon: int, tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(horizon=horizon)
    learner, batch = new(policy), rows(policy)
    asked: list[Tensor] = []
    learned: list[Tensor] = []

    def next_value(batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        asked.extend(inputs)
        return torch.arange(6.0)

    def critic_step(batch: TensorDictBase, *inputs: Tensor) -> dict[str, float]:
        learned.extend(inputs)
        return {}

    monkeypatch.setattr(learner.off_policy, "next_value", next_value)
    monkeypatch.setattr(learner.off_policy, "critic_step", critic_step)
    torch.manual_seed(2)
    learner.critic_step(batch)
    torch.manual_seed(2)
    following = ModelInput.of(sub_dict(batch, ("next", "obs")))
    chunk = normalized(policy, policy.sample_actions(following, policy.draw_noise(6)))
    assert torch.equal(asked[0], following.state)
    assert torch.allclose(asked[1], chunk, atol=1e-5)
    value, obs, taken = learned
    assert value.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(obs, batch["obs", "model_input", "state"])
    assert torch.equal(taken, batch["chunk"])


def played(policy: FlowPolicy) -> TensorDict:
    """Return six decisions with rewards that differ."""
    now, later = (observed(policy, torch.rand(6, 4)) for _ in range(2))
    flag = torch.zeros(6, 1, dtype=torch.bool)
    outcome = {
        "elapsed": torch.ones(6, 1),
        "reward_steps": torch.rand(6, 2),
        "live": torch.ones(6, 2, dtype=torch.bool),
        "duration": torch.full((6, 1), 2),
        **{key: flag for key in ("terminated", "truncated", "done", "invalid")},
    }
    now["next"], now["elapsed"] = later.update(outcome), torch.zeros(6, 1)
    now["action"] = torch.rand(6, 2, 2)
    return now


def test_a_rollouts_rows_have_their_next_observations(tiny_policy: Callable) -> None:
    policy = tiny_policy()
    learner = new(policy)
    now = played(policy)
    learner.push(now.unsqueeze(1))
    stored = learner.off_policy.replay.all()
    state = ("model_input", "state")
    assert torch.equal(stored[("obs", *state)], now[state])
    assert torch.equal(stored[("next", "obs", *state)], now[("next", *state)])
    assert torch.allclose(stored["chunk"], normalized(policy, now["action"]), atol=1e-6)
    assert stored["next", "elapsed"].eq(1).all()
    assert stored["elapsed"].eq(0).all()


# The demonstrations


def demonstrations(policy: FlowPolicy, **obs: Tensor) -> Demonstrations:
    """Return an episode of five steps and one of three."""
    torch.manual_seed(3)
    episode = torch.tensor([0] * 5 + [1] * 3)
    table = Demonstrations(
        obs={"state": torch.rand(8, 4), **obs},
        action=torch.rand(8, 2),
        episode=episode,
        tasks=("reach the goal",),
    )
    return table.preprocess(policy)


AFTER_TWO_STEPS = [2, 3, 4, 4, 4, 7, 7, 7]
"""The step after a chunk of two from each step, at most the last of its episode."""


def test_rows_of_demonstrations_by_hand(tiny_policy: Callable) -> None:
    policy = tiny_policy()
    table = demonstrations(policy)
    config = ActorCriticConfig(
        off_policy=replace(OFF_POLICY, offline_share=0.5), anchor_coefficient=0.0
    )
    found = FlowActorCritic(policy, config, table).rows.of_demonstrations()
    inputs = table.obs["model_input"]
    assert isinstance(inputs, TensorDict)
    assert torch.equal(found["obs", "model_input", "state"], inputs["state"])
    following = found["next", "obs", "model_input", "state"]
    assert torch.equal(following, inputs["state"][AFTER_TWO_STEPS])
    assert found["terminated"].flatten().tolist() == [False] * 3 + [True] * 2 + [False] + [True] * 2
    assert found["duration"].flatten().tolist() == [2, 2, 2, 2, 1, 2, 2, 1]
    assert found["elapsed"].eq(0).all()
    assert found["next", "elapsed"].eq(0).all()
    last = [1, 2, 3, 4, 4, 6, 7, 7]  # second action of each chunk
    chunk = torch.stack([table.action, table.action[last]], 1)
    assert torch.allclose(found["chunk"], normalized(policy, chunk), atol=1e-6)


def test_prefixes_of_demonstrations_are_those_of_their_observations() -> None:
    policy = vision_policy()
    policies.apply_finetuning(policy, FinetuneConfig(trainable=("action_expert", "projections")))
    pictures = torch.randint(256, (2, 8, 3, 20, 20), dtype=torch.uint8)
    views = {"image/front": pictures[0], "image/wrist": pictures[1]}
    table = demonstrations(policy, **views, task_id=torch.zeros(8, dtype=torch.int64))
    config = ActorCriticConfig(
        off_policy=replace(OFF_POLICY, offline_share=0.5), anchor_coefficient=0.0
    )
    learner = FlowActorCritic(policy, config, table)
    assert learner.keep_prefix
    found = learner.rows.of_demonstrations()
    anew = learner.rows.encode_prefix(table.chunks(1))
    after, places = torch.tensor(AFTER_TWO_STEPS), (("obs", "prefix"), ("next", "obs", "prefix"))
    for place, expected in zip(places, (anew, sub_dict(anew, after)), strict=True):
        prefix = sub_dict(found, place)
        assert (prefix == expected).all()
    assert not (anew == sub_dict(anew, after)).all()  # the control


# The policy's loss


def known_critics(learner: FlowActorCritic, positive: bool = False) -> None:
    """Let the first critic say the chunk's mean, the second three times that plus one."""

    def values(obs: Tensor, chunk: Tensor, time: Tensor) -> Tensor:
        mean = chunk.mean(-1) + 10 * positive
        return torch.stack([mean, 3 * mean + 1])

    def others(obs: Tensor, chunk: Tensor, time: Tensor) -> Tensor:
        return 100 + values(obs, chunk, time)

    learner.off_policy.critic.forward = values  # type: ignore[assignment]
    learner.off_policy.target.forward = others  # type: ignore[assignment]


def drawn(learner: FlowActorCritic, batch: TensorDict) -> TensorDictBase:
    torch.manual_seed(4)
    return learner._with_draws(batch)


def own_chunk(policy: FlowPolicy, batch: TensorDictBase) -> Tensor:
    """Return the policy's chunks from the drawn noise, with a gradient."""
    inputs = ModelInput.of(sub_dict(batch, "obs"))
    return normalized(policy, policy.sample_actions(inputs, batch["noise"]))


@pytest.mark.parametrize("horizon", [2, 3])
@torch.no_grad()
def test_the_policy_maximizes_the_mean_of_the_trained_critics(
    horizon: int, tiny_policy: Callable
) -> None:
    policy = tiny_policy(horizon=horizon)
    learner = new(policy)
    known_critics(learner)
    batch = drawn(learner, rows(policy))
    mean = own_chunk(policy, batch).mean(-1)
    value = (mean + 3 * mean + 1) / 2  # (B,), of both critics
    loss, metrics = learner.actor_loss(batch)
    assert float(loss) == pytest.approx(float(-value.mean() / value.abs().mean()), rel=1e-4)
    assert float(metrics["policy_value"]) == pytest.approx(float(value.mean()), rel=1e-4)


def test_the_scale_of_values_has_no_gradient(tiny_policy: Callable) -> None:
    """Values of one sign divided by their own mean would have none at all."""
    policy = tiny_policy()
    learner = new(policy)
    known_critics(learner, positive=True)
    batch = drawn(learner, rows(policy))
    weight = policy.network.action_out_proj.weight
    value = 2 * (own_chunk(policy, batch).mean(-1) + 10) + 0.5
    (expected,) = torch.autograd.grad(-value.mean() / value.detach().abs().mean(), weight)
    (found,) = torch.autograd.grad(learner.actor_loss(batch)[0], weight)
    assert float(expected.abs().max()) > 1e-4
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("time_limit", "time"), [("terminal", 0.25), ("bootstrap", 0.0)])
def test_the_values_of_the_policy_have_the_used_time(
    time_limit: Any, time: float, tiny_policy: Callable
) -> None:
    policy = tiny_policy()
    learner = new(policy, time_limit)
    seen = []

    def values(obs: Tensor, chunk: Tensor, time: Tensor) -> Tensor:
        seen.append(time)
        return chunk.mean(-1)[None]

    learner.off_policy.critic.forward = values  # type: ignore[assignment]
    learner.actor_loss(drawn(learner, rows(policy)))
    assert seen[0].flatten().tolist() == [time] * 6


@torch.no_grad()
def test_cloning_has_its_weight_in_the_loss(
    tiny_policy: Callable, demonstrations_file: Path
) -> None:
    policy = tiny_policy(horizon=3)
    off_policy = replace(OFF_POLICY, demonstrations=demonstrations_file)
    learner = new(policy, off_policy=off_policy, cloning_coefficient=0.5)
    known_critics(learner)
    batch = drawn(learner, rows(policy))
    loss, metrics = learner.actor_loss(batch)
    cloned = sub_dict(batch, "cloned")
    by_hand = policy.loss(
        ModelInput.of(cloned), cloned["action"], cloned["noise"], cloned["flow_time"]
    ).mean()
    without, _ = learner.actor_loss(batch.exclude("cloned"))
    assert float(metrics["cloning_loss"]) == pytest.approx(float(by_hand), rel=1e-5)
    assert float(loss - without) == pytest.approx(0.5 * float(by_hand), rel=1e-4)


@torch.no_grad()
def test_the_anchor_is_the_policy_before_training_from_the_same_noise(
    tiny_policy: Callable,
) -> None:
    policy = tiny_policy()
    learner = new(policy, anchor_coefficient=2.0)
    known_critics(learner)
    pretrained = deepcopy(policy)
    with torch.no_grad():
        policy.network.action_out_proj.bias += 0.2
    batch = drawn(learner, rows(policy))
    loss, metrics = learner.actor_loss(batch)
    mean = own_chunk(policy, batch).mean(-1)
    value = 2 * mean + 0.5
    distance = (own_chunk(policy, batch) - own_chunk(pretrained, batch)).square().mean()
    assert float(distance) > 1e-3
    assert float(metrics["anchor_distance"]) == pytest.approx(float(distance), rel=1e-3)
    expected = -value.mean() / value.abs().mean() + 2.0 * distance
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_the_policy_steps_in_every_nth_round(
    tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy()
    learner, batch = new(policy, actor_every=3), TensorDict({}, [1])
    learner.push(played(policy).unsqueeze(1))
    monkeypatch.setattr(learner, "_sample", lambda: batch)
    monkeypatch.setattr(learner, "critic_step", lambda batch: {})
    stepped: list[int] = []

    def actor_step(batch: TensorDictBase) -> dict[str, float]:
        stepped.append(learner.num_rounds)
        return {}

    monkeypatch.setattr(learner, "actor_step", actor_step)
    learner.learn(7)
    assert stepped == [3, 6]
    learner.learn(5, train_actor=False)
    assert stepped == [3, 6]


@torch.no_grad()
def test_the_used_solver_is_the_samplers(tiny_policy: Callable) -> None:
    policy = tiny_policy()
    sampler = replace(policy.sampler, solver="midpoint")
    policy = policy.replace(sampler=sampler)
    learner = new(policy)
    known_critics(learner)
    batch = drawn(learner, rows(policy))
    value = 2 * own_chunk(policy, batch).mean(-1) + 0.5
    assert float(learner.actor_loss(batch)[1]["policy_value"]) == pytest.approx(
        float(value.mean()), rel=1e-4
    )
    euler = own_chunk(policy.replace(sampler=replace(sampler, solver="euler")), batch).mean(-1)
    assert abs(float((2 * euler + 0.5 - value).mean())) > 1e-4  # the control


def test_exploration_adds_the_noise_to_the_chunk(tiny_policy: Callable) -> None:
    """A noise that is known and not symmetric, as that of a learned mean."""
    policy = tiny_policy()
    actor = ExploringActor(policy, keep_prefix=False)
    noise = policy.draw_noise(6)
    given = observed(policy, torch.rand(6, 4)).set("noise", noise)
    expected = policy.sample_actions(ModelInput.of(given), noise)
    actor.perturb = lambda x: torch.full((len(x), 4), 0.5)
    with set_exploration_type(ExplorationType.RANDOM):
        added = actor(given)["action"] - expected
    scale = policy.preprocessor.action_scale
    assert torch.allclose(added, (0.5 * scale).expand_as(added), atol=1e-5)
