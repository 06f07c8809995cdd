"""`noise_source`, `dsrl_actor`: chosen noise through a frozen flow, its density, its checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from pitune import policies
from pitune.policies import (
    Actor,
    FlowPolicy,
    FlowSDEConfig,
    LikelihoodActor,
    ModelInput,
    NoiseActor,
    NoiseSource,
    SteeringConfig,
)
from pitune.policies.network.context import pack, unpack
from pitune.rl.algorithms.dsrl_actor import NoiseSourceActor
from pitune.rl.experience.sub_dict import sub_dict

LAYOUTS = ("repeat", "per_step", "full")


@pytest.fixture
def obs(tiny_policy: Callable) -> TensorDict:
    torch.manual_seed(0)
    return observations(tiny_policy(), 6)


def observations(policy: FlowPolicy, num: int) -> TensorDict:
    td = TensorDict({"state": torch.rand(num, 4)}, batch_size=[num])
    return policy.observation_preprocessor(())(td)


@pytest.fixture
def steer(tiny_policy: Callable) -> Callable[..., NoiseSourceActor]:
    """Steer a policy that predicts three actions and executes two."""

    def make(steered: bool = True, keep: bool = False, **settings: object) -> NoiseSourceActor:
        torch.manual_seed(1)
        base = tiny_policy(horizon=3, executed=2)
        policy = base.with_noise_source(SteeringConfig(hidden=(8,), **settings))  # type: ignore[arg-type]
        actor = NoiseSourceActor(policy, keep)
        actor.source.steered.fill_(steered)
        torch.nn.init.normal_(
            actor.source.actor.net[-1].get_parameter("weight")
        )  # differs between states
        return actor

    return make


# The latent and the flow


def test_the_layout_decides_which_steps_share_a_vector(steer: Callable) -> None:
    repeat = steer(layout="repeat").source.noise_of(torch.tensor([[1.0, 2.0]]))
    assert repeat.tolist() == [[[1, 2], [1, 2], [1, 2]]]
    per_step = steer(layout="per_step").source.noise_of(torch.tensor([[1.0, 2, 3, 4]]))
    assert per_step.tolist() == [[[1, 2], [3, 4], [3, 4]]]  # two of three are executed
    full = steer(layout="full").source.noise_of(torch.arange(6.0)[None])
    assert full.tolist() == [[[0, 1], [2, 3], [4, 5]]]


def test_the_frozen_flow_maps_noise_to_the_actions_of_the_base_policy(
    steer: Callable, tiny_policy: Callable, obs: TensorDict
) -> None:
    actor, base = steer(layout="full"), tiny_policy(horizon=3, executed=2)
    policy, inputs, latent = actor.policy, ModelInput.of(obs), torch.randn(6, 6)
    actions = policy.preprocessor.unnormalize_action(actor.decode(policy.encode(inputs), latent))
    assert torch.equal(actions, base.sample_actions(inputs, latent.unflatten(1, (3, 2))))
    again = actor.decode(policy.encode(inputs), latent)
    assert torch.equal(again, actor.decode(policy.encode(inputs), latent))
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = actor.decode(policy.encode(ModelInput.of(sub_dict(obs, order))), latent[order])
    assert torch.allclose(shuffled, again[order], atol=1e-6)
    other = actor.decode(policy.encode(inputs), latent + 1)
    assert (other - again).abs().min() > 1e-4  # a flow that ignored its noise would be seen


@pytest.mark.parametrize("layout", LAYOUTS)
def test_deployed_it_starts_from_the_noise_actors_mode(
    layout: str, steer: Callable, tiny_policy: Callable, obs: TensorDict
) -> None:
    actor, base = steer(layout=layout), tiny_policy(horizon=3, executed=2)
    policy, inputs = actor.policy, ModelInput.of(obs)
    with torch.no_grad():
        latent = actor.source.actor.mode(policy.critic_input(inputs, policy.encode(inputs)))
        expected = base.sample_actions(inputs, actor.source.noise_of(latent))
        assert torch.equal(policy.sample_actions(inputs), expected)
        assert torch.equal(policy.sample_actions(inputs, policy.draw_noise(6)), expected)


def test_until_it_is_steered_it_is_the_base_policy(
    steer: Callable, tiny_policy: Callable, obs: TensorDict
) -> None:
    policy, base = steer(steered=False).policy, tiny_policy(horizon=3, executed=2)
    noise, inputs = policy.draw_noise(6), ModelInput.of(obs)
    assert torch.equal(policy.sample_actions(inputs, noise), base.sample_actions(inputs, noise))


def test_a_small_bound_stays_near_the_mode(steer: Callable, obs: TensorDict) -> None:
    inputs = ModelInput.of(obs)
    context = steer().policy.encode(inputs)
    far = []
    for magnitude in (1e-4, 1e-2, 1.0):
        actor = steer(layout="full", magnitude=magnitude)
        with torch.no_grad():
            latent, _ = actor.source.actor.sample(actor.policy.critic_input(inputs, context))
        assert latent.abs().max() <= magnitude
        mode = actor.decode(context, torch.zeros(6, 6))
        far.append(float((actor.decode(context, latent) - mode).abs().max()))
    assert far[0] < 1e-3 < far[2]
    assert far[0] < far[1] < far[2]


def test_the_base_is_frozen_and_only_the_noise_actor_learns(steer: Callable) -> None:
    actor = steer()
    learning = {name for name, p in actor.policy.named_parameters() if p.requires_grad}
    assert learning
    assert all(name.startswith("noise_source.actor.") for name in learning)
    assert len(learning) == len(list(actor.source.actor.parameters()))
    with pytest.raises(ValueError, match="steered already; steer the checkpoint that it was made"):
        actor.policy.with_noise_source(SteeringConfig())
    with pytest.raises(ValueError, match="magnitude=0 must be above 0"):
        SteeringConfig(magnitude=0)


def test_steering_leaves_the_given_policy_without_a_source(tiny_policy: Callable) -> None:
    base = tiny_policy()
    policy = base.with_noise_source(SteeringConfig())
    assert base.noise_source is None
    assert policy.network is base.network
    with pytest.raises(ValueError, match="the policy has no noise source"):
        NoiseSourceActor(base, keep_context=False)


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
    actor = steer().source.actor
    latent, log_prob = actor.sample(torch.randn(5, 20))
    (latent.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())


# What an actor writes


def test_a_context_survives_packing(steer: Callable, obs: TensorDict) -> None:
    actor = steer()
    policy = actor.policy
    packed = pack(policy.encode(ModelInput.of(obs)))
    assert packed.batch_size == (6,)
    assert all(isinstance(value, torch.Tensor) for value in packed.values())
    rows = torch.tensor([4, 4, 1])
    latent = torch.randn(3, 2)
    expected = actor.decode(policy.encode(ModelInput.of(sub_dict(obs, rows))), latent)
    found = actor.decode(unpack(sub_dict(packed, rows)), latent)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("keep", [False, True])
def test_the_actor_writes_the_entries_that_a_learner_stores(
    keep: bool, steer: Callable, obs: TensorDict
) -> None:
    actor = steer(keep=keep)
    policy, inputs = actor.policy, ModelInput.of(obs)
    with set_exploration_type(ExplorationType.RANDOM):
        written = actor(obs.clone())
    assert ("context" in written.keys()) is keep
    expected = policy.critic_input(inputs, policy.encode(inputs))
    assert torch.equal(written["critic_input"], expected)
    encoded = actor.encode(obs)
    assert (written.select(*encoded.keys()) == encoded).all()
    decoded = actor.decode(policy.encode(inputs), written["latent"])
    assert torch.equal(written["action"], policy.preprocessor.unnormalize_action(decoded))
    assert not written["latent"].requires_grad


def test_it_explores_with_normal_noise_until_steered_and_inside_the_bound_after(
    steer: Callable,
) -> None:
    torch.manual_seed(0)
    obs = observations(steer().policy, 2000)
    latents = {}
    for steered in (False, True):
        actor = steer(steered=steered, magnitude=0.5)
        with set_exploration_type(ExplorationType.RANDOM):
            latents[steered] = actor(obs.clone())["latent"]
    assert float(latents[False].std()) == pytest.approx(1.0, abs=0.05)
    assert latents[False].abs().max() > 2.5
    assert latents[True].abs().max() <= 0.5
    assert latents[True].std() > 0.05


def test_every_actor_acts_as_deployed_when_it_does_not_explore(
    steer: Callable, obs: TensorDict
) -> None:
    actor = steer()
    policy = actor.policy
    actors = (actor, Actor(policy), LikelihoodActor(policy, FlowSDEConfig()))
    expected = policy.sample_actions(ModelInput.of(obs))
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        for each in actors:
            assert torch.equal(each(obs.clone())["action"], expected)
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        assert torch.equal(Actor(policy)(obs.clone())["action"], expected)


# Its checkpoint


def test_policy_and_noise_actor_are_saved_together(
    steer: Callable, obs: TensorDict, tmp_path: Path
) -> None:
    policy = steer(layout="per_step", magnitude=0.7).policy
    policies.save(policy, tmp_path / "steered")
    loaded = policies.load(tmp_path / "steered")
    assert isinstance(loaded.noise_source, NoiseSource)
    assert loaded.noise_source.config == policy.noise_source.config
    assert torch.equal(
        loaded.sample_actions(ModelInput.of(obs)), policy.sample_actions(ModelInput.of(obs))
    )
    assert not loaded.network.action_out_proj.weight.requires_grad
    description = json.loads((tmp_path / "steered" / "policy.json").read_text())
    assert description["steering"]["layout"] == "per_step"


def test_a_checkpoint_without_its_noise_actor_is_refused(steer: Callable, tmp_path: Path) -> None:
    policies.save(steer().policy, tmp_path / "steered")
    file = tmp_path / "steered" / "policy.json"
    description = json.loads(file.read_text())
    steering = description.pop("steering")
    file.write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"surplus keys \['noise_source\.actor\."):
        policies.load(tmp_path / "steered")
    file.write_text(json.dumps({**description, "steering": {**steering, "layot": "full"}}))
    with pytest.raises(ValueError, match="does not describe a policy"):
        policies.load(tmp_path / "steered")


def test_a_checkpoint_of_version_2_has_other_names_and_is_read(
    steer: Callable, obs: TensorDict, tmp_path: Path
) -> None:
    policy = steer().policy
    policies.save(policy, tmp_path / "steered")
    file = tmp_path / "steered" / "policy.safetensors"
    old = {
        key.replace("noise_source.actor.", "noise_actor.").replace(
            "noise_source.steered", "steered"
        ): value
        for key, value in load_file(file).items()
    }
    assert any(key.startswith("noise_actor.") for key in old)
    save_file(old, file)
    description = tmp_path / "steered" / "policy.json"
    description.write_text(description.read_text().replace('"version": 3', '"version": 2'))
    loaded = policies.load(tmp_path / "steered")
    inputs = ModelInput.of(obs)
    assert torch.equal(loaded.sample_actions(inputs), policy.sample_actions(inputs))
