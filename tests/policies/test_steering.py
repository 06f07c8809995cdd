"""`steering`: chosen noise through a frozen flow, its density, its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from pitune import policies
from pitune.policies import (
    FlowSDEConfig,
    LikelihoodActor,
    ModelInput,
    SteeredActor,
    SteeredPolicy,
    SteeringConfig,
)
from pitune.policies.steering import NoiseActor, pack, unpack

LAYOUTS = ("repeat", "per_step", "full")


@pytest.fixture
def obs() -> TensorDict:
    torch.manual_seed(0)
    return TensorDict({"state": torch.rand(6, 4)}, batch_size=[6])


@pytest.fixture
def steer(tiny_policy: Callable) -> Callable[..., SteeredPolicy]:
    """Steer a policy that predicts three actions and executes two."""

    def make(steered: bool = True, **settings: object) -> SteeredPolicy:
        torch.manual_seed(1)
        base = tiny_policy(horizon=3, executed=2)
        policy = SteeredPolicy(base, SteeringConfig(hidden=(8,), **settings))  # type: ignore[arg-type]
        policy.steered.fill_(steered)
        torch.nn.init.normal_(policy.noise_actor.net[-1].weight)  # says something by state
        return policy

    return make


# The latent and the flow


def test_layouts_say_which_steps_share_a_vector(steer: Callable) -> None:
    repeat = steer(layout="repeat").noise_of(torch.tensor([[1.0, 2.0]]))
    assert repeat.tolist() == [[[1, 2], [1, 2], [1, 2]]]
    per_step = steer(layout="per_step").noise_of(torch.tensor([[1.0, 2, 3, 4]]))
    assert per_step.tolist() == [[[1, 2], [3, 4], [3, 4]]]  # two of three are executed
    full = steer(layout="full").noise_of(torch.arange(6.0)[None])
    assert full.tolist() == [[[0, 1], [2, 3], [4, 5]]]


def test_the_frozen_flow_makes_of_noise_what_the_base_policy_does(
    steer: Callable, tiny_policy: Callable, obs: TensorDict
) -> None:
    policy, base = steer(layout="full"), tiny_policy(horizon=3, executed=2)
    latent = torch.randn(6, 6)
    actions = policy.preprocessor.unnormalize_action(
        policy.decode(policy.encode(ModelInput.of(obs)), latent)
    )
    assert torch.equal(
        actions, base.sample_actions(ModelInput.of(obs), latent.unflatten(1, (3, 2)))
    )
    again = policy.decode(policy.encode(ModelInput.of(obs)), latent)
    assert torch.equal(again, policy.decode(policy.encode(ModelInput.of(obs)), latent))
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = policy.decode(policy.encode(ModelInput.of(obs[order])), latent[order])
    assert torch.allclose(shuffled, again[order], atol=1e-6)
    other = policy.decode(policy.encode(ModelInput.of(obs)), latent + 1)
    assert (other - again).abs().min() > 1e-4  # a flow that ignored its noise would be seen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deployed_it_starts_from_the_noise_actors_mode(
    layout: str, steer: Callable, tiny_policy: Callable, obs: TensorDict
) -> None:
    policy, base = steer(layout=layout), tiny_policy(horizon=3, executed=2)
    with torch.no_grad():
        latent = policy.noise_actor.mode(
            policy.steering_input(obs, policy.encode(ModelInput.of(obs)))
        )
        expected = base.sample_actions(ModelInput.of(obs), policy.noise_of(latent))
        assert torch.equal(policy.sample_actions(ModelInput.of(obs)), expected)
        assert torch.equal(
            policy.sample_actions(ModelInput.of(obs), policy.draw_noise(6)), expected
        )


def test_until_it_is_steered_it_is_the_base_policy(
    steer: Callable, tiny_policy: Callable, obs: TensorDict
) -> None:
    policy, base = steer(steered=False), tiny_policy(horizon=3, executed=2)
    noise = policy.draw_noise(6)
    assert torch.equal(
        policy.sample_actions(ModelInput.of(obs), noise),
        base.sample_actions(ModelInput.of(obs), noise),
    )


def test_a_small_bound_stays_near_the_mode(steer: Callable, obs: TensorDict) -> None:
    context = steer().encode(obs)
    far = []
    for magnitude in (1e-4, 1e-2, 1.0):
        policy = steer(layout="full", magnitude=magnitude)
        with torch.no_grad():
            latent, _ = policy.noise_actor.sample(policy.steering_input(obs, context))
        assert latent.abs().max() <= magnitude
        mode = policy.decode(context, torch.zeros(6, 6))
        far.append(float((policy.decode(context, latent) - mode).abs().max()))
    assert far[0] < 1e-3 < far[2]
    assert far[0] < far[1] < far[2]


def test_the_base_is_frozen_and_only_the_noise_actor_learns(steer: Callable) -> None:
    policy = steer()
    learning = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("noise_actor.") for name in learning)
    assert len(learning) == len(list(policy.noise_actor.parameters()))
    with pytest.raises(ValueError, match="steered already; steer the checkpoint that it was made"):
        SteeredPolicy(policy, SteeringConfig())
    with pytest.raises(ValueError, match="magnitude=0 must be above 0"):
        SteeringConfig(magnitude=0)


# The density of the latent


@pytest.mark.parametrize(("mean", "std", "magnitude"), [(0.0, 1.0, 1.0), (0.7, 0.5, 2.5)])
def test_the_latents_density_integrates_to_one(mean: float, std: float, magnitude: float) -> None:
    """By quadrature over the latent itself: the change of variables and the bound are in it."""
    actor = NoiseActor(1, 1, magnitude, (4,)).double()
    latent = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1] * magnitude
    z = torch.atanh(latent / magnitude)[:, None]
    log_std = torch.full_like(z, math.log(std))
    log_prob = actor.log_prob(z, torch.full_like(z, mean), log_std)
    total = torch.trapezoid(log_prob.exp(), latent)
    assert float(total) == pytest.approx(1.0, abs=2e-3)
    entropy = -torch.trapezoid(log_prob.exp() * log_prob, latent)
    torch.manual_seed(0)
    drawn = mean + std * torch.randn(200_000, 1, dtype=torch.float64)
    spread = torch.full_like(drawn, math.log(std))
    estimate = -actor.log_prob(drawn, torch.full_like(drawn, mean), spread).mean()
    assert float(estimate) == pytest.approx(float(entropy), abs=1e-2)


def test_the_density_is_that_of_torch() -> None:
    torch.manual_seed(0)
    actor = NoiseActor(3, 4, 1.5, (4,)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    mean, log_std = actor(x)
    z = mean + log_std.exp() * torch.randn_like(mean)
    normal = torch.distributions.Normal(mean, log_std.exp())
    transforms = [
        torch.distributions.TanhTransform(),
        torch.distributions.AffineTransform(0.0, 1.5),
    ]
    reference = torch.distributions.TransformedDistribution(normal, transforms)
    expected = reference.log_prob(1.5 * torch.tanh(z)).sum(-1)
    assert torch.allclose(actor.log_prob(z, mean, log_std), expected, atol=1e-6)
    far = torch.full((1, 4), 40.0, dtype=torch.float64)  # tanh is 1 to the last bit
    assert torch.isfinite(actor.log_prob(far, far, torch.zeros_like(far))).all()


def test_gradients_reach_the_noise_actor_through_its_samples(steer: Callable) -> None:
    actor = steer().noise_actor
    latent, log_prob = actor.sample(torch.randn(5, 20))
    (latent.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())


# What an actor writes


def test_a_context_survives_packing(steer: Callable, obs: TensorDict) -> None:
    policy = steer()
    context = policy.encode(ModelInput.of(obs))
    packed = pack(context)
    assert packed.batch_size == (6,)
    assert all(isinstance(value, torch.Tensor) for value in packed.values())
    rows = torch.tensor([4, 4, 1])
    latent = torch.randn(3, 2)
    expected = policy.decode(policy.encode(ModelInput.of(obs[rows])), latent)
    assert torch.allclose(policy.decode(unpack(packed[rows]), latent), expected, atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_the_actor_writes_what_a_learner_stores(
    keep: bool, steer: Callable, obs: TensorDict
) -> None:
    policy = steer()
    actor = SteeredActor(policy, keep_context=keep)
    with set_exploration_type(ExplorationType.RANDOM):
        written = actor(obs.clone())
    assert ("context" in written["encoded"].keys()) is keep
    read = policy.steering_input(obs, policy.encode(ModelInput.of(obs)))
    assert torch.equal(written["encoded", "input"], read)
    assert (written["encoded"] == actor.encode(obs)).all()
    decoded = policy.decode(policy.encode(ModelInput.of(obs)), written["latent"])
    assert torch.equal(written["action"], policy.preprocessor.unnormalize_action(decoded))
    assert not written["latent"].requires_grad


def test_it_explores_with_normal_noise_until_steered_and_inside_the_bound_after(
    steer: Callable,
) -> None:
    torch.manual_seed(0)
    obs = TensorDict({"state": torch.rand(2000, 4)}, batch_size=[2000])
    latents = {}
    for steered in (False, True):
        policy = steer(steered=steered, magnitude=0.5)
        with set_exploration_type(ExplorationType.RANDOM):
            latents[steered] = SteeredActor(policy)(obs.clone())["latent"]
    assert float(latents[False].std()) == pytest.approx(1.0, abs=0.05)
    assert latents[False].abs().max() > 2.5
    assert latents[True].abs().max() <= 0.5
    assert latents[True].std() > 0.05


def test_the_actor_acts_as_deployed_when_it_does_not_explore(
    steer: Callable, obs: TensorDict
) -> None:
    policy = steer()
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        by_actor = SteeredActor(policy)(obs.clone())["action"]
        by_script = LikelihoodActor(policy, FlowSDEConfig())(obs.clone())["action"]
    assert torch.equal(by_actor, policy.sample_actions(ModelInput.of(obs)))
    assert torch.equal(by_script, by_actor)  # experiments.evaluate builds the latter


# Its checkpoint


def test_policy_and_noise_actor_are_saved_together(
    steer: Callable, obs: TensorDict, tmp_path: Path
) -> None:
    policy = steer(layout="per_step", magnitude=0.7)
    policies.save(policy, tmp_path / "steered")
    loaded = policies.load(tmp_path / "steered")
    assert isinstance(loaded, SteeredPolicy)
    assert loaded.steering == policy.steering
    assert torch.equal(
        loaded.sample_actions(ModelInput.of(obs)), policy.sample_actions(ModelInput.of(obs))
    )
    assert not loaded.network.action_out_proj.weight.requires_grad
    description = json.loads((tmp_path / "steered" / "policy.json").read_text())
    assert description["steering"]["layout"] == "per_step"


def test_a_checkpoint_without_its_noise_actor_is_refused(steer: Callable, tmp_path: Path) -> None:
    policies.save(steer(), tmp_path / "steered")
    file = tmp_path / "steered" / "policy.json"
    description = json.loads(file.read_text())
    steering = description.pop("steering")
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"surplus keys \['noise_actor\."):
        policies.load(tmp_path / "steered")
    file.write_text(json.dumps({**description, "steering": {**steering, "layot": "full"}}))
    with pytest.raises(ValueError, match="does not describe a policy"):
        policies.load(tmp_path / "steered")
