"""`dsrl`: targets, signs and observations of each of its losses, for both variants, by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from pitune import envs, rl
from pitune.policies import ModelInput, SteeringConfig
from pitune.rl import DSRL, DSRLConfig, OffPolicyConfig
from pitune.rl.actor_critic.q_ensemble import QEnsemble
from pitune.rl.algorithms.dsrl_actor import NoiseSourceActor
from pitune.rl.experience.demonstrations import Demonstrations
from pitune.rl.experience.sub_dict import sub_dict

both_variants = pytest.mark.parametrize("variant", ["sac", "noise_aliased"])
SMALL = OffPolicyConfig(
    capacity=100, minibatch_size=8, hidden=(8,), warmup_decisions=16, warmup_rounds=1
)


@pytest.fixture
def new(tiny_policy: Callable) -> Callable[..., DSRL]:
    """Make an algorithm whose noise actor differs between observations."""

    def make(variant: str = "noise_aliased", **changes: Any) -> DSRL:
        torch.manual_seed(0)
        config = DSRLConfig(
            variant=variant,  # type: ignore[arg-type]
            steering=SteeringConfig(hidden=(8,)),
            off_policy=SMALL,
            initial_temperature=0.5,
        )
        algorithm = DSRL(replace(config, **changes), tiny_policy())
        torch.nn.init.normal_(algorithm.source.actor.net[-1].get_parameter("weight"))
        return algorithm

    return make


def sampled(algorithm: DSRL) -> TensorDictBase:
    """Return eight rows of a rollout."""
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 4, seed=0).collect()
    algorithm.off_policy.replay.push(algorithm.rows.of_rollout(rollout))
    return algorithm.off_policy.sample()


def say(ensemble: QEnsemble, values: Sequence[float]) -> None:
    """Give each critic a value that is the same everywhere."""
    with torch.no_grad():
        ensemble.head.weight.zero_()
        ensemble.head.bias.copy_(torch.tensor(values)[:, None, None])


# The critics


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize(
    ("variant", "keep"), [("sac", True), ("noise_aliased", True), ("noise_aliased", False)]
)
def test_the_target_of_the_critics_by_hand(
    variant: str, keep: bool, entropy: bool, new: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value of the next observation with its own noise, less the weighted log-density."""
    algorithm = new(variant, keep_context=keep, entropy_in_target=entropy)
    batch = sampled(algorithm)
    asked: list[Tensor] = []
    learned: list[Tensor] = []

    def next_value(batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        asked.extend(inputs)
        return torch.arange(8.0)

    def critic_step(batch: TensorDictBase, *inputs: Tensor) -> dict[str, float]:
        learned.extend(inputs)
        return {}

    monkeypatch.setattr(algorithm.off_policy, "next_value", next_value)
    monkeypatch.setattr(algorithm.off_policy, "critic_step", critic_step)
    torch.manual_seed(1)
    algorithm.critic_step(batch)

    following = batch["next", "critic_input"]
    assert not torch.allclose(following, batch["critic_input"])
    with torch.no_grad():
        torch.manual_seed(1)
        latent, log_prob = algorithm.source.actor.sample(following)
        action = latent
        if variant == "noise_aliased":
            # by the frozen flow itself, from the state in the next observation's input
            state = following[:, :4]
            inputs = ModelInput(state=state, robot_state=state)
            context = algorithm.policy.encode(inputs)
            action = algorithm.actor.decode(context, latent)[..., :2].flatten(1)
    assert torch.equal(asked[0], following)
    assert torch.allclose(asked[1], action, atol=1e-5)
    value, obs, taken = learned
    expected = torch.arange(8.0) - 0.5 * log_prob * entropy
    assert torch.allclose(value, expected, atol=1e-5)
    assert torch.equal(obs, batch["critic_input"])
    assert torch.equal(taken, batch["latent" if variant == "sac" else "chunk"])


# The noise actor


@both_variants
@pytest.mark.parametrize(("pessimism", "reduce"), [("min", torch.minimum), ("mean", torch.add)])
def test_the_actors_loss_is_the_weighted_log_density_minus_the_pessimistic_value(
    pessimism: Any, reduce: Callable, variant: str, new: Callable
) -> None:
    algorithm = new(variant, off_policy=replace(SMALL, pessimism=pessimism))

    def values(obs: Tensor, latent: Tensor, time: Tensor) -> Tensor:
        return torch.stack([latent.sum(-1), 3 * latent.sum(-1) + time[:, 0]])

    critic = algorithm.noise_critic if variant == "noise_aliased" else algorithm.off_policy.critic
    critic.forward = values
    rows = {"input": torch.rand(8, algorithm.source.input_dim), "noise": torch.randn(8, 2)}
    batch = TensorDict(rows | {"time": torch.full((8, 1), 0.5)}, [8])
    with torch.no_grad():
        loss, metrics = algorithm.actor_loss(batch)
        latent, log_prob = algorithm.source.actor.sample(batch["input"], batch["noise"])
    value = reduce(latent.sum(-1), 3 * latent.sum(-1) + 0.5) / (2 if pessimism == "mean" else 1)
    assert float(loss) == pytest.approx(float((0.5 * log_prob - value).mean()), rel=1e-4)
    assert float(metrics["steered_value"]) == pytest.approx(float(value.mean()), rel=1e-4)
    assert torch.allclose(metrics["log_prob"], log_prob)


@both_variants
def test_the_actor_climbs_the_value_and_spreads(variant: str, new: Callable) -> None:
    """With a value of the latent's sum the mean rises; with none the entropy does."""
    for slope in (1.0, 0.0):
        algorithm = new(variant, actor_learning_rate=1e-2, temperature_learning_rate=1e-9)
        batch = sampled(algorithm)
        critic = (
            algorithm.noise_critic if variant == "noise_aliased" else algorithm.off_policy.critic
        )
        critic.forward = lambda obs, latent, time, slope=slope: slope * latent.sum(-1)[None]
        actor, obs = algorithm.source.actor, batch["critic_input"]
        with torch.no_grad():  # narrow, so that the entropy has room to rise
            actor.net[-1].get_parameter("bias")[2:] -= 2
        noise = torch.randn(8, 2)
        before = [v.detach() for v in actor.sample(obs, noise)]
        for _ in range(10):
            algorithm.actor_step(batch)
        after = [v.detach() for v in actor.sample(obs, noise)]
        if slope:
            assert (after[0] - before[0]).mean() > 0.02
        else:
            assert (after[1] - before[1]).mean() < -0.02


@pytest.mark.parametrize("time_limit", ["terminal", "bootstrap"])
@both_variants
def test_the_actor_and_the_noise_critic_see_the_used_time_of_a_task_with_a_limit(
    variant: str, time_limit: Any, new: Callable
) -> None:
    algorithm = new(variant, off_policy=replace(SMALL, time_limit=time_limit))
    batch = sampled(algorithm)
    assert batch["elapsed"].max() > 0
    assert not torch.equal(batch["elapsed"], batch["next", "elapsed"])
    expected = batch["elapsed"] * (time_limit == "terminal")
    times: list[Tensor] = []

    def recording(critic: QEnsemble) -> None:
        def values(*inputs: Tensor) -> Tensor:
            times.append(torch.cat(inputs, -1)[:, -1:].detach())
            return QEnsemble.forward(critic, *inputs)

        critic.forward = values  # type: ignore[method-assign]

    recording(algorithm.noise_critic if variant == "noise_aliased" else algorithm.off_policy.critic)
    algorithm.actor_step(batch)
    if variant == "noise_aliased":
        algorithm.distil_step(batch)
    assert times
    assert all(torch.equal(time, expected) for time in times)


def test_the_noise_critic_learns_the_trained_critics_values(new: Callable) -> None:
    """Two noise critics that say 0 and 1, a least value of 10: errors 10^2 and 9^2."""
    algorithm = new()
    batch = sampled(algorithm)
    say(algorithm.off_policy.critic, [10, 20])
    say(algorithm.off_policy.target, [4, 5])
    say(algorithm.noise_critic, [0, 1])
    assert algorithm.distil_step(batch)["distillation_loss"] == pytest.approx(100 + 81)
    assert (algorithm.noise_critic.head.bias.flatten() > torch.tensor([0.0, 1.0])).all()


def test_the_distilled_value_is_that_of_the_flows_chunk(
    new: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = new()
    batch = sampled(algorithm)
    latent = torch.randn(8, 2)
    asked: list[Tensor] = []
    monkeypatch.setattr(algorithm, "distillation_noise", lambda obs: latent)

    def value(batch: TensorDictBase, *inputs: Tensor) -> Tensor:
        asked.extend(inputs)
        return torch.zeros(8)

    monkeypatch.setattr(algorithm.off_policy, "value", value)
    algorithm.distil_step(batch)
    state = batch["critic_input"][:, :4]
    context = algorithm.policy.encode(ModelInput(state=state, robot_state=state))
    chunk = algorithm.actor.decode(context, latent)[..., :2].flatten(1)
    assert torch.equal(asked[0], batch["critic_input"])
    assert torch.allclose(asked[1], chunk, atol=1e-5)


# The temperature


@pytest.mark.parametrize(("layout", "entries"), [("repeat", 2), ("full", 4)])
def test_the_temperatures_loss_by_hand_and_by_finite_differences(
    layout: Any, entries: int, new: Callable
) -> None:
    """Its slope in the temperature is the entropy above its target, which is per entry."""
    algorithm = new("sac", target_entropy=-0.5, steering=SteeringConfig(layout=layout, hidden=(8,)))
    assert algorithm.source.actor.latent_dim == entries
    batch = TensorDict({"log_prob": torch.tensor([1.0, 2.0, 3.0])}, [3])
    entropy, target = -2.0, -0.5 * entries
    with torch.no_grad():
        losses = []
        for alpha in (0.5, 0.5 + 1e-2):
            algorithm.temperature.log.fill_(alpha).log_()
            losses.append(float(algorithm.temperature_loss(batch)[0]))
    assert losses[0] == pytest.approx(0.5 * (entropy - target), abs=1e-5)
    assert (losses[1] - losses[0]) / 1e-2 == pytest.approx(entropy - target, abs=1e-3)


@pytest.mark.parametrize(("target", "rises"), [(5.0, True), (-5.0, False)])
@both_variants
def test_the_temperature_rises_while_the_entropy_is_below_its_target(
    variant: str, target: float, rises: bool, new: Callable
) -> None:
    algorithm = new(variant, target_entropy=target, temperature_learning_rate=0.1)
    batch = sampled(algorithm)
    assert algorithm.temperature().item() == pytest.approx(0.5)
    metrics = algorithm.actor_step(batch)
    assert (algorithm.temperature().item() > 0.5) is rises
    assert metrics["temperature"] == pytest.approx(0.5)


def test_the_reported_entropy_is_per_entry(new: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = new("sac")
    batch = sampled(algorithm)
    torch.manual_seed(2)
    noise = torch.randn(8, 2)
    with torch.no_grad():
        _, log_prob = algorithm.source.actor.sample(batch["critic_input"], noise)
    torch.manual_seed(2)
    found = algorithm.actor_step(batch)["entropy"]
    assert found == pytest.approx(float(-log_prob.mean() / 2), rel=1e-4)


@torch.no_grad()
def test_the_deployed_latent_is_the_squashed_mean(new: Callable) -> None:
    """Inside the bound, and the middle of the samples before they are squashed."""
    algorithm = new(steering=SteeringConfig(magnitude=0.7, hidden=(8,)))
    actor, obs = algorithm.source.actor, 3 * torch.rand(50, algorithm.source.input_dim)
    torch.nn.init.normal_(actor.net[-1].get_parameter("weight"))
    mean, _ = actor(obs)
    assert torch.allclose(actor.mode(obs), 0.7 * torch.tanh(mean))
    assert torch.allclose(actor.mode(obs), actor.sample(obs, torch.zeros_like(mean))[0])
    assert mean.abs().max() > 0.7 >= actor.mode(obs).abs().max()


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
def test_a_latent_is_decoded_by_the_samplers_solver(solver: Any, tiny_policy: Callable) -> None:
    base = tiny_policy()
    base = base.replace(sampler=replace(base.sampler, solver=solver))
    actor = NoiseSourceActor(base.with_noise_source(SteeringConfig(layout="full")), False)
    state, latent = torch.rand(6, 4), torch.randn(6, 4)
    inputs = base.model_input({"state": state})
    found = actor.decode(base.encode(inputs), latent)
    expected = base.sample_actions(inputs, latent.unflatten(1, (2, 2)))
    assert torch.allclose(base.preprocessor.unnormalize_action(found), expected, atol=1e-6)


# Rounds and rows


@pytest.mark.parametrize(("rounds", "steered"), [(2, 0.0), (3, 1.0)])
def test_the_policy_is_steered_from_the_first_step_of_its_noise_actor_on(
    rounds: int, steered: float, new: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, warmup_decisions=16, warmup_rounds=rounds)
    algorithm = new("sac", off_policy=settings, actor_every=3)
    stepped: list[int] = []
    original = algorithm.actor_step

    def actor_step(batch: TensorDictBase) -> dict[str, float]:
        stepped.append(algorithm.num_rounds)
        return original(batch)

    monkeypatch.setattr(algorithm, "actor_step", actor_step)
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 4, seed=0).collect()
    rollout["next", "reward_steps"] += torch.rand(4, 4, 2)
    assert algorithm.update(rollout)["steered"] == steered
    assert stepped == ([3] if steered else [])


@pytest.mark.parametrize("keep", [False, True])
def test_rows_of_a_rollout_have_their_next_observations(keep: bool, new: Callable) -> None:
    algorithm = new(keep_context=keep)
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    rollout = rl.Rollouts(envs.make(config), algorithm, 4, seed=0).collect()
    rows, state = algorithm.rows.of_rollout(rollout), ("model_input", "state")
    bound = 5.0
    for place, obs in ((rows, rollout), (sub_dict(rows, "next"), sub_dict(rollout, "next"))):
        expected = obs[state].flatten(0, 1)
        assert torch.allclose(place["critic_input"][:, :4], expected.clamp(-bound, bound))
        if not keep:
            assert torch.equal(place[state], expected)


@pytest.mark.parametrize("keep", [False, True])
def test_rows_of_demonstrations_have_their_next_observations(keep: bool, new: Callable) -> None:
    """Chunks of two steps of an episode of five steps and one of three."""
    algorithm = new(keep_context=keep)
    torch.manual_seed(3)
    table = Demonstrations(
        obs={"state": torch.rand(8, 4)},
        action=torch.rand(8, 2),
        episode=torch.tensor([0] * 5 + [1] * 3),
    ).preprocess(algorithm.policy)
    rows = algorithm.rows.of_demonstrations(table)
    inputs, after = table.obs["model_input"], [2, 3, 4, 4, 4, 7, 7, 7]
    assert isinstance(inputs, TensorDict)
    encoded = algorithm.actor.encode(table.chunks(1))
    assert torch.allclose(rows["critic_input"], encoded["critic_input"])
    assert torch.allclose(rows["next", "critic_input"], encoded["critic_input"][after])
    assert not torch.allclose(rows["next", "critic_input"], rows["critic_input"])
    if keep:
        packed, expected = sub_dict(rows, "next")["context"], encoded["context"][after]
        for key in expected.keys():
            assert torch.allclose(packed[key].float(), expected[key].float()), key
    else:
        assert torch.equal(rows["next", "model_input", "state"], inputs["state"][after])
    assert rows["latent"].eq(0).all()
