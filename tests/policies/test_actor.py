"""`actor`: what TorchRL sees, and a likelihood that is that of what was sampled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributions import Normal
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import ClipPPOLoss

from pitune.policies import (
    FlowChain,
    FlowNoiseConfig,
    FlowPolicy,
    FlowSDEConfig,
    GemmaConfig,
    LikelihoodActor,
    ModelInput,
    NormStats,
    Pi0Config,
    PreprocessorConfig,
    SamplerConfig,
    likelihood_config,
)
from pitune.policies.flow.kernels import FlowNoise, FlowSDE, ode_step
from pitune.policies.flow.ode import integrate
from pitune.policies.flow.path import FlowOutput, TimeGrid
from pitune.policies.likelihood.flow_steps import FlowStepLikelihood
from pitune.policies.likelihood.heads import NoiseNetwork, VelocityHead

HORIZON, EXECUTED, MODEL_DIM, ROBOT_DIM = 4, 2, 3, 2
EXPERT = GemmaConfig(width=16, depth=2, mlp_dim=32, num_heads=2, num_kv_heads=1, head_dim=8)
LIKELIHOODS: dict[str, dict[str, Any]] = {
    "flow_sde": {"kernel": "flow_sde"},
    "flow_noise_learned": {"kernel": "flow_noise"},
    "velocity_gaussian": {"kernel": "velocity_gaussian"},
    "flow_noise_constant": {"kernel": "flow_noise", "std_min": 0.1, "std_max": 0.1},
}


ROUNDING = 1e-5
"""Greatest log-ratio that float32 may leave, summed over entries. Holds for these seeds; with a
deviation of 0.1 other seeds were seen to reach 1.3e-5."""


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with set_exploration_type(ExplorationType.RANDOM):
        yield


def make_policy(flow_steps: int = 4) -> FlowPolicy:
    """A policy that executes half of its chunk, of a robot with fewer dimensions than the model."""
    network = Pi0Config(state_dim=4, action_dim=MODEL_DIM, action_horizon=HORIZON, expert=EXPERT)
    action = NormStats(mean=(0.5, -1.0), std=(2.0, 0.5), q01=(-4.0, -2.0), q99=(4.0, 0.0))
    stats = PreprocessorConfig(state=NormStats.identity(3), action=action)
    sampler = SamplerConfig(flow_steps=flow_steps, execution_horizon=EXECUTED)
    return FlowPolicy(network, stats, sampler)


def make_actor(flow_steps: int = 4, kernel: str = "flow_sde", **likelihood: Any) -> LikelihoodActor:
    """An actor whose learned noise, if any, differs between entries."""
    actor = LikelihoodActor(make_policy(flow_steps), likelihood_config(kernel, **likelihood))
    head = actor.likelihood.head
    if isinstance(head, VelocityHead):  # unbounded, so a little of it
        torch.nn.init.normal_(head.head.weight, std=0.1)
    elif head is not None:
        assert isinstance(head, NoiseNetwork)
        torch.nn.init.normal_(head.net[-1].get_parameter("weight"))
    return actor


def observations(num: int = 32) -> TensorDict:
    obs = TensorDict({"state": torch.randn(num, 3)}, [num])
    with torch.random.fork_rng():
        return make_policy().observation_preprocessor(())(obs)


def log_ratio(actor: LikelihoodActor, td: TensorDict, micro_batch: int) -> Tensor:
    """New minus old log-probability of stored chains, scored some rows at a time."""
    with torch.no_grad():
        parts = [actor.get_dist(part).log_prob(part["chain"]) for part in td.split(micro_batch)]
    return torch.cat(parts) - td["action_log_prob"]


# TorchRL's protocol


@pytest.mark.parametrize("steps", ["one", "all"])
def test_the_actor_writes_its_declared_keys(steps: str) -> None:
    actor = make_actor(stochastic_steps=steps)
    assert actor.in_keys == ["model_input"]
    assert actor.log_prob_keys == ["action_log_prob"]
    assert actor.dist_sample_keys == ["chain"]
    td = actor(observations())
    assert set(td.keys()) == {"state", *actor.in_keys, *actor.out_keys}
    assert td["action"].shape == (32, EXECUTED, ROBOT_DIM)
    assert td["chain"].shape == (32, 5, HORIZON, MODEL_DIM)
    assert td["action_log_prob"].shape == (32, 1 if steps == "one" else 4)
    assert not any(value.requires_grad for value in td.values(True, True))


def test_the_action_is_the_end_of_the_chain_in_robot_units() -> None:
    td = make_actor()(observations())
    end = td["chain"][:, -1, :EXECUTED, :ROBOT_DIM]
    by_hand = end * torch.tensor([2.0, 0.5]) + torch.tensor([0.5, -1.0])
    assert torch.allclose(td["action"], by_hand, atol=1e-4)


def test_the_actions_noise_may_be_given() -> None:
    actor, obs = make_actor(), observations()
    noise = torch.randn(32, HORIZON, MODEL_DIM)
    chains = []
    for _ in range(2):
        torch.manual_seed(7)
        chains.append(actor(obs.clone().set("noise", noise))["chain"])
    assert torch.equal(chains[0][:, 0], noise)
    assert torch.equal(chains[0], chains[1])
    first, second = (actor(obs.clone())["chain"][:, 0] for _ in range(2))
    assert not torch.equal(first, second)
    spread = actor(observations(2000))["chain"][:, 0]
    assert float(spread.mean()) == pytest.approx(0, abs=0.05)
    assert float(spread.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_deterministic_actions_are_those_of_the_deployed_policy(name: str) -> None:
    actor, obs = make_actor(**LIKELIHOODS[name]), observations()
    noise = torch.randn(32, HORIZON, MODEL_DIM)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        given = actor(obs.clone().set("noise", noise))
        assert torch.equal(given["action"], actor.policy.sample_actions(ModelInput.of(obs), noise))
        torch.manual_seed(3)
        fresh = actor(obs.clone())["action"]
    torch.manual_seed(3)
    assert torch.equal(fresh, actor.policy.sample_actions(ModelInput.of(obs)))
    assert "chain" not in given.keys()
    random = actor(obs.clone().set("noise", noise))["action"]
    assert float((random - given["action"]).abs().max()) > 0.05


def test_the_actors_parameters_are_the_policys_and_the_noise_networks() -> None:
    sde, learned = make_actor(), make_actor(kernel="flow_noise")
    num_policy = len(list(sde.policy.parameters()))
    assert {id(p) for p in sde.parameters()} == {id(p) for p in sde.policy.parameters()}
    assert len(list(sde.parameters())) == num_policy
    assert learned.likelihood.head is not None
    num_noise = len(list(learned.likelihood.head.parameters()))
    assert num_noise == 6  # weights and biases of three layers
    assert len(list(learned.parameters())) == num_policy + num_noise


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("ratio", ["joint", "step"])
def test_torchrls_ppo_loss_takes_the_actor_with_a_ratio_of_one(name: str, ratio: str) -> None:
    actor = make_actor(**LIKELIHOODS[name], ratio=ratio)
    td = actor(observations()).set("advantage", torch.randn(32, 1))
    loss = ClipPPOLoss(
        actor,  # type: ignore[arg-type]  # TorchRL takes every module with `get_dist`
        None,
        entropy_bonus=True,
        entropy_coeff=0.1,
        functional=False,
    )
    loss.set_keys(action="chain", sample_log_prob="action_log_prob")
    losses = loss(td)
    assert float(losses["mean_ratio"]) == pytest.approx(1, abs=ROUNDING)
    assert float(losses["max_ratio"]) == pytest.approx(1, abs=1e-4)
    assert float(losses["clip_fraction"]) == 0
    assert float(losses["loss_objective"].detach()) == pytest.approx(
        -float(td["advantage"].mean()), abs=1e-5
    )


# Which entries are random


def test_the_random_step_is_drawn_anew_for_every_row() -> None:
    actor = make_actor(stochastic_steps="one")
    td = actor(observations(400))
    step = td["stochastic_step"].clone()
    counts = torch.bincount(step, minlength=4)
    assert len(counts) == 4
    assert int(counts.min()) > 60  # of 100 expected
    assert not torch.equal(actor(td)["stochastic_step"], step)


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("steps", ["one", "all"])
def test_noise_enters_executed_entries_of_random_steps_and_no_others(name: str, steps: str) -> None:
    actor = make_actor(**LIKELIHOODS[name], stochastic_steps=steps)
    td = actor(observations(64))
    policy, grid = actor.policy, actor.policy.grid
    field, chain = policy.field(policy.encode(ModelInput.of(td))), td["chain"]
    executed = torch.zeros(HORIZON, MODEL_DIM, dtype=torch.bool)
    executed[:EXECUTED, :ROBOT_DIM] = True
    assert torch.equal(policy.executed_mask() > 0, executed)
    for k in range(4):
        x, step = chain[:, k : k + 1], torch.full((64, 1), k)
        with torch.no_grad():
            straight = ode_step(x, field(x, grid.times()[step]), step, grid).mean[:, 0]
        moved = (chain[:, k + 1] - straight).abs()
        random = td["stochastic_step"] == k if steps == "one" else torch.ones(64, dtype=torch.bool)
        assert float(moved[:, ~executed].max()) < 1e-5
        assert float(moved[random][:, executed].amax(1).min()) > 1e-3
        if steps == "one":
            assert float(moved[~random].max()) < 1e-5


def test_noise_in_the_padding_would_be_seen() -> None:
    # the control of the test above: a whole mask moves the padding
    actor = make_actor()
    whole = torch.ones(HORIZON, MODEL_DIM)
    actor.policy.executed_mask = lambda context=None: whole  # type: ignore[method-assign]
    td = actor(observations())
    field = actor.policy.field(actor.policy.encode(ModelInput.of(td)))
    x, step = td["chain"][:, :1], torch.zeros(32, 1, dtype=torch.int64)
    with torch.no_grad():
        output = field(x, actor.policy.grid.times()[step])
    straight = ode_step(x, output, step, actor.policy.grid).mean[:, 0]
    assert float((td["chain"][:, 1] - straight)[..., ROBOT_DIM:].abs().max()) > 0.1


# The ratio


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("steps", ["one", "all"])
@pytest.mark.parametrize("ratio", ["joint", "step"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("flow_steps", [1, 4])
def test_ratio_is_one_before_any_update(
    name: str, steps: str, ratio: str, reduction: str, flow_steps: int
) -> None:
    options = {"stochastic_steps": steps, "ratio": ratio, "reduction": reduction}
    actor = make_actor(flow_steps, **LIKELIHOODS[name], **options)
    td = actor(observations())
    num_scored = 1 if steps == "one" else flow_steps
    assert td["action_log_prob"].shape == ((32,) if ratio == "joint" else (32, num_scored))
    for micro_batch in (32, 7, 1):
        assert float(log_ratio(actor, td, micro_batch).abs().max()) < ROUNDING


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_ratio_is_one_after_the_rollout_was_stored(name: str, tmp_path: Path) -> None:
    actor = make_actor(**LIKELIHOODS[name], stochastic_steps="one", ratio="joint")
    td = actor(observations())
    wide = td.clone()
    for key in (("model_input", "state"), "chain", "action_log_prob"):
        wide[key] = td[key].double().float()
    assert float(log_ratio(actor, wide, 32).abs().max()) < ROUNDING
    td.memmap(tmp_path / "rollout")
    stored = TensorDict.load_memmap(tmp_path / "rollout")
    assert float(log_ratio(actor, stored, 8).abs().max()) < ROUNDING
    # the control: half precision is not a place to keep a chain
    half = td.clone().set("chain", td["chain"].bfloat16().float())
    assert float(log_ratio(actor, half, 32).abs().max()) > 1e-3


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_ratio_leaves_one_with_the_parameters_or_the_step(name: str) -> None:
    actor = make_actor(**LIKELIHOODS[name], stochastic_steps="one")
    td = actor(observations())
    shifted = td.clone().set("stochastic_step", (td["stochastic_step"] + 1) % 4)
    assert float(log_ratio(actor, shifted, 32).abs().max()) > 0.1
    with torch.no_grad():
        actor.policy.network.action_out_proj.bias.add_(0.01)
    assert float(log_ratio(actor, td, 32).abs().max()) > 1e-3


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_the_normal_density_of_the_executed_entries(name: str) -> None:
    actor = make_actor(**LIKELIHOODS[name])
    td = actor(observations())
    policy, x, x_next = actor.policy, td["chain"][:, :-1], td["chain"][:, 1:]
    step = torch.arange(4).expand(32, 4)
    with torch.no_grad():
        output = policy.field(policy.encode(ModelInput.of(td)))(x, policy.grid.times()[step])
        likelihood = actor.likelihood
        assert isinstance(likelihood, FlowStepLikelihood)
        mean, std = likelihood.kernel(policy.executed_mask())(x, output, step, policy.grid)
    executed = (..., slice(EXECUTED), slice(ROBOT_DIM))
    density = Normal(mean[executed], std.expand_as(mean)[executed]).log_prob(x_next[executed])
    assert torch.allclose(td["action_log_prob"], density.sum((-2, -1)), atol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_reductions_are_sums_over_steps_and_means_over_scored_entries(name: str) -> None:
    actors = {
        (ratio, reduction): make_actor(**LIKELIHOODS[name], ratio=ratio, reduction=reduction)
        for ratio in ("joint", "step")
        for reduction in ("sum", "mean")
    }
    first = actors["step", "sum"]
    td = first(observations())
    scores = {}
    for key, actor in actors.items():
        actor.load_state_dict(first.state_dict())
        scores[key] = actor.get_dist(td).log_prob(td["chain"])
    num_scored = EXECUTED * ROBOT_DIM
    assert torch.allclose(scores["step", "mean"] * num_scored, scores["step", "sum"], atol=1e-4)
    assert torch.allclose(scores["joint", "sum"], scores["step", "sum"].sum(1), atol=1e-4)
    assert torch.allclose(scores["joint", "mean"], scores["step", "mean"].sum(1), atol=1e-4)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_one_scored_step_of_a_random_chain_is_that_column_of_the_whole_score(name: str) -> None:
    actor = make_actor(**LIKELIHOODS[name], stochastic_steps="all", ratio="step")
    td = actor(observations())
    step = torch.randint(4, (32,))
    one = actor.get_dist(td.clone().set("stochastic_step", step)).log_prob(td["chain"])
    assert torch.allclose(one, td["action_log_prob"].gather(1, step[:, None]), atol=ROUNDING)


def test_the_gradient_of_one_drawn_step_is_on_average_that_of_all() -> None:
    actor = make_actor(ratio="step")
    td = actor(observations(6))
    bias = actor.policy.network.action_out_proj.bias

    def gradient(td: TensorDict) -> Tensor:
        score = actor.get_dist(td).log_prob(td["chain"]).mean()
        return torch.autograd.grad(score, bias)[0]

    each = [gradient(td.clone().set("stochastic_step", torch.full((6,), k))) for k in range(4)]
    assert torch.allclose(torch.stack(each).mean(0), gradient(td), atol=1e-4)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_only_the_joint_sum_is_an_importance_weight(reduction: str) -> None:
    # The field is affine, so the new policy's mean action is known: E[r f] must be it.
    slope, offset, shift, num = 0.4, -0.3, 0.15, 20_000
    grid, config = TimeGrid(4), FlowSDEConfig(ratio="joint", reduction=reduction)  # type: ignore[arg-type]

    def chains(extra: float) -> FlowChain:
        return FlowChain(
            lambda x, t: FlowOutput(slope * x + offset + extra),
            FlowSDE(0.5),
            grid,
            config,
            None,
            (num, 1, 2),
            num_scored=2,
            device=torch.device("cpu"),
        )

    old, new = chains(0.0), chains(shift)
    chain, old_log_prob = old.sample_and_log_prob(torch.randn(num, 1, 2))
    ratio = (new.log_prob(chain) - old_log_prob).exp()
    f = chain[:, -1, 0].mean(-1)

    def mean_action(extra: float) -> float:
        x = 0.0
        for k in range(4):
            t, delta = 1 - k / 4, 0.25
            v, g = slope * x + offset + extra, 0.5 * math.sqrt(t / (1 - min(t, 0.75)))
            x = x - delta * v - g**2 * delta / (2 * t) * (x + (1 - t) * v)
        return x

    def deviation(samples: Tensor, expected: float) -> float:
        """In standard errors."""
        error = float(samples.std()) / math.sqrt(num)
        return abs(float(samples.mean()) - expected) / error

    assert deviation(f, mean_action(0.0)) < 4
    assert deviation(f, mean_action(shift)) > 10
    if reduction == "sum":
        assert deviation(ratio, 1.0) < 4
        assert deviation(ratio * f, mean_action(shift)) < 4
    else:
        assert deviation(ratio * f, mean_action(shift)) > 8


# Learned noise


def test_learned_noise_stays_inside_its_bounds_and_starts_in_the_middle() -> None:
    network = NoiseNetwork(16, 3, 0.08, 0.16)
    output = FlowOutput(torch.zeros(64, 2, 4, 3), torch.randn(64, 2, 4, 16))
    start = network(output, torch.zeros(64, 2))
    assert start.shape == (64, 2, 4, 3)
    assert torch.allclose(start, torch.tensor(math.sqrt(0.08 * 0.16)))
    torch.nn.init.normal_(network.net[-1].get_parameter("weight"), std=30.0)
    std = network(output, torch.zeros(64, 2)).detach()
    assert float(std.min()) == pytest.approx(0.08, abs=1e-4)
    assert float(std.max()) == pytest.approx(0.16, abs=1e-4)
    assert float(std.min()) > 0.08 - 1e-6
    assert float(std.max()) < 0.16 + 1e-6


def test_equal_bounds_make_the_noise_constant() -> None:
    actor = make_actor(kernel="flow_noise", std_min=0.1, std_max=0.1)
    td = actor(observations())
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    assert isinstance(dist, FlowChain)
    random = dist.scored_std > 0
    assert torch.allclose(dist.scored_std[random], torch.tensor(0.1))


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("steps", ["one", "all"])
def test_entropy_is_the_mean_normal_entropy_of_the_random_entries(name: str, steps: str) -> None:
    actor = make_actor(**LIKELIHOODS[name], stochastic_steps=steps)
    td = actor(observations())
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    assert isinstance(dist, FlowChain)
    std = dist.scored_std[..., :EXECUTED, :ROBOT_DIM].flatten(1)
    assert bool((std > 0).all())
    assert torch.allclose(dist.entropy(), Normal(0.0, std).entropy().mean(1), atol=1e-5)


def test_entropy_trains_the_learned_noise() -> None:
    actor = make_actor(kernel="flow_noise")
    assert actor.likelihood.head is not None
    td = actor(observations())
    dist = actor.get_dist(td)
    dist.log_prob(td["chain"])
    before = dist.entropy().mean()
    (-before).backward()
    with torch.no_grad():
        for parameter in actor.likelihood.head.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
        dist.log_prob(td["chain"])
    assert bool(dist.entropy().mean() > before)


def test_one_constant_flow_noise_step_is_gaussian_ppo_worked_by_hand() -> None:
    std, num = 0.1, 64
    options: dict[str, Any] = {"kernel": "flow_noise", "std_min": std, "std_max": std}
    actor = make_actor(flow_steps=1, **options, ratio="joint")
    td = actor(observations(num))
    noise, action = td["chain"].unbind(1)
    executed = (..., slice(EXECUTED), slice(ROBOT_DIM))

    def mean() -> Tensor:
        context = actor.policy.encode(ModelInput.of(td))
        velocity = actor.policy.network.velocity(context, noise[:, None], torch.ones(num, 1))
        return (noise - velocity.velocity[:, 0])[executed]

    with torch.no_grad():
        old_log_prob = Normal(mean(), std).log_prob(action[executed]).sum((1, 2))
        assert torch.allclose(td["action_log_prob"], old_log_prob, atol=1e-4)
        actor.policy.network.action_out_proj.bias.add_(torch.tensor([0.02, -0.02, 0.5]))
        offset = action[executed] - mean()
        ratio = (Normal(mean(), std).log_prob(action[executed]).sum((1, 2)) - old_log_prob).exp()

    td["advantage"] = torch.randn(num, 1)
    loss = ClipPPOLoss(
        actor,  # type: ignore[arg-type]  # TorchRL takes every module with `get_dist`
        None,
        clip_epsilon=0.2,
        entropy_bonus=False,
        functional=False,
    )
    loss.set_keys(action="chain", sample_log_prob="action_log_prob")
    loss(td)["loss_objective"].backward()

    advantage = td["advantage"][:, 0]
    clipped = ((advantage > 0) & (ratio > 1.2)) | ((advantage < 0) & (ratio < 0.8))
    assert 0 < int(clipped.sum()) < num
    # d(-mean(r A)) / d bias, with d log p / d mean = offset / std^2 and d mean / d bias = -1
    rows = torch.where(clipped, 0.0, advantage * ratio)[:, None] * offset.sum(1) / std**2
    gradient = actor.policy.network.action_out_proj.bias.grad
    assert gradient is not None
    assert torch.allclose(gradient[:ROBOT_DIM], rows.mean(0), rtol=1e-3, atol=1e-4)
    assert gradient[ROBOT_DIM:].eq(0).all()  # padding is not executed, so not scored


# The distribution by itself


def test_sampling_the_distribution_starts_from_fresh_or_given_noise() -> None:
    actor = make_actor()
    td = actor(observations())
    dist = actor.get_dist(td)
    assert dist.batch_shape == (32,)
    assert dist.event_shape == (5, HORIZON, MODEL_DIM)
    first, second = dist.sample(), dist.sample()
    assert first.shape == (32, 5, HORIZON, MODEL_DIM)
    assert not torch.equal(first[:, 0], second[:, 0])
    noise = torch.randn(32, HORIZON, MODEL_DIM)
    chain, log_prob = dist.sample_and_log_prob(noise)
    assert torch.equal(chain[:, 0], noise)
    assert torch.equal(dist.sample_from(noise)[:, 0], noise)
    assert torch.allclose(dist.log_prob(chain), log_prob, atol=ROUNDING)


def test_the_mean_of_many_sampled_first_steps_is_the_kernels() -> None:
    actor = make_actor(flow_steps=1)
    td = observations(1).expand(20_000).clone()
    noise = torch.randn(1, HORIZON, MODEL_DIM).expand(20_000, -1, -1)
    end = actor(td.set("noise", noise))["chain"][:, -1]
    with torch.no_grad():
        first = td[:1]
        assert isinstance(first, TensorDict)
        field = actor.policy.field(actor.policy.encode(ModelInput.of(first)))
        ode = integrate(field, noise[:1], TimeGrid(1))[0]
    # K = 1: N(noise - v - a^2 / 2 * noise, a^2) where there is noise, the ODE elsewhere
    mask = actor.policy.executed_mask()
    assert torch.allclose(end.mean(0), ode - 0.125 * noise[0] * mask, atol=0.02)
    assert torch.allclose(end.std(0), 0.5 * mask, atol=0.02)


# Errors


def test_sampling_several_chains_per_row_is_refused() -> None:
    dist = make_actor().get_dist(observations())
    with pytest.raises(ValueError, match=r"sample_shape=\(3,\) is not supported; repeat the rows"):
        dist.sample((3,))


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0.0, 0.1, "std_min=0.0 must be above 0"),
        (-0.1, 0.1, "std_min=-0.1 must be above 0"),
        (0.2, 0.1, "std_min=0.2 must be at most std_max=0.1"),
    ],
)
def test_bounds_of_the_noise_are_checked(low: float, high: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowNoiseConfig(std_min=low, std_max=high)


@pytest.mark.parametrize("level", [0.0, -0.5])
def test_a_likelihood_without_noise_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match=f"noise_level={level} must be above 0"):
        FlowSDEConfig(noise_level=level)


@pytest.mark.parametrize("name", ["stochastic_steps", "reduction", "ratio"])
def test_unknown_words_of_a_likelihood_are_refused_with_the_valid_ones(name: str) -> None:
    message = f"{name}='nonsense' is unknown; valid: '(one|sum|joint)', "
    options: dict[str, Any] = {name: "nonsense"}
    with pytest.raises(ValueError, match=message):
        FlowSDEConfig(**options)


def test_a_step_left_by_an_earlier_decision_does_not_silence_the_others() -> None:
    actor = make_actor(stochastic_steps="all")
    stale = observations().set("stochastic_step", torch.zeros(32, dtype=torch.int64))
    td = actor(stale)
    assert td["action_log_prob"].shape == (32, 4)
    field, grid = actor.policy.field(actor.policy.encode(ModelInput.of(td))), actor.policy.grid
    for k in range(4):
        x, step = td["chain"][:, k : k + 1], torch.full((32, 1), k)
        with torch.no_grad():
            straight = ode_step(x, field(x, grid.times()[step]), step, grid).mean[:, 0]
        moved = (td["chain"][:, k + 1] - straight)[:, :EXECUTED, :ROBOT_DIM].abs()
        assert float(moved.amax(1).min()) > 1e-3, k


def test_learned_noise_without_features_is_refused() -> None:
    kernel = FlowNoise(NoiseNetwork(16, 3, 0.08, 0.16))
    x, step = torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="needs the network's hidden features"):
        kernel(x, FlowOutput(x), step, TimeGrid(2))
