"""`dsrl`: what learns, what must not, and that steering finds what the base rarely does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rewards import rewarded
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import ExplorationType, set_exploration_type

from observations import observed
from pitune import envs, rl
from pitune.policies import ModelInput, SteeringConfig
from pitune.rl import DSRL, DSRLConfig, OffPolicyConfig
from pitune.rl.algorithms.dsrl_actor import NoiseSourceActor
from pitune.rl.experience.sub_dict import sub_dict

VARIANTS = ("sac", "noise_aliased")
both_variants = pytest.mark.parametrize("variant", VARIANTS)
SMALL = OffPolicyConfig(
    capacity=500,
    minibatch_size=8,
    hidden=(8,),
    warmup_decisions=32,
    warmup_rounds=4,
    updates_per_decision=0.5,
)


@pytest.fixture
def new(tiny_policy: Callable) -> Callable[..., DSRL]:
    def make(variant: str = "noise_aliased", **changes: Any) -> DSRL:
        torch.manual_seed(0)
        config = DSRLConfig(
            variant=variant,  # type: ignore[arg-type]
            steering=SteeringConfig(hidden=(8,)),
            off_policy=SMALL,
        )
        return DSRL(replace(config, **changes), tiny_policy())

    return make


def experience(algorithm: DSRL) -> rl.Rollouts:
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, 4, seed=0)


def values_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def parts(algorithm: DSRL) -> dict[str, torch.nn.Module]:
    policy = algorithm.policy
    frozen = {"network": policy.network, "preprocessor": policy.preprocessor}
    return {**frozen, "noise_actor": algorithm.source.actor, **algorithm.networks}


def changed(algorithm: DSRL, what: Callable[[], object]) -> set[str]:
    """Return which parts something changes; no others may get a gradient."""
    for part in parts(algorithm).values():
        part.zero_grad(set_to_none=True)
    before = {name: values_of(part) for name, part in parts(algorithm).items()}
    what()
    after = {name: values_of(part) for name, part in parts(algorithm).items()}
    moved = {
        name
        for name, values in before.items()
        if any(not torch.equal(value, after[name][key]) for key, value in values.items())
    }
    for name, part in parts(algorithm).items():
        assert name in moved or all(p.grad is None for p in part.parameters()), name
    return moved


@pytest.mark.parametrize("variant", ["sac", pytest.param("noise_aliased", marks=pytest.mark.slow)])
def test_the_frozen_policy_is_bit_identical_after_a_thousand_rounds(
    variant: str, new: Callable
) -> None:
    algorithm = new(variant)
    rollouts = experience(algorithm)
    base = values_of(algorithm.policy.network)
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    for _ in range(1000):
        algorithm.round()
    for key, value in algorithm.policy.network.state_dict().items():
        assert torch.equal(value, base[key]), key
    assert all(p.grad is None for p in algorithm.policy.network.parameters())


@both_variants
def test_each_step_changes_its_own_networks_and_nothing_else(variant: str, new: Callable) -> None:
    algorithm = new(variant)
    rollouts = experience(algorithm)
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    batch = algorithm.off_policy.sample()
    critics = {"critic", "target_critic"}
    assert changed(algorithm, lambda: algorithm.critic_step(batch)) == critics
    actor = {"noise_actor", "temperature"}
    assert changed(algorithm, lambda: algorithm.actor_step(batch)) == actor
    if variant == "noise_aliased":
        assert changed(algorithm, lambda: algorithm.distil_step(batch)) == {"noise_critic"}
    else:
        assert "noise_critic" not in algorithm.networks


@both_variants
def test_the_warm_up_collects_exactly_its_number_of_transitions(
    variant: str, new: Callable
) -> None:
    """Standard normal noise and no step of learning, for two rollouts of sixteen decisions."""
    algorithm = new(variant)
    rollouts = experience(algorithm)
    metrics = []

    def update() -> None:
        rollout = rewarded(rollouts.collect())
        assert rollout["latent"].abs().max() > algorithm.config.steering.magnitude
        metrics.append(algorithm.update(rollout))

    assert changed(algorithm, update) == set()
    assert metrics[0] == {"replay_size": 16.0, "rounds": 0.0, "informative": 1.0, "steered": 0.0}
    assert {"critic", "noise_actor"} <= changed(algorithm, update)
    assert (metrics[1]["replay_size"], metrics[1]["rounds"]) == (32.0, 4.0)
    steered = rollouts.collect()
    assert steered["latent"].abs().max() <= algorithm.config.steering.magnitude
    third = algorithm.update(steered)
    assert (third["replay_size"], third["rounds"], third["steered"]) == (48.0, 8.0, 1.0)


@both_variants
def test_the_update_to_data_ratio_counts_from_the_warm_up(variant: str, new: Callable) -> None:
    algorithm = new(variant, off_policy=replace(SMALL, updates_per_decision=0.2))
    rollouts = experience(algorithm)
    rounds = [algorithm.update(rewarded(rollouts.collect()))["rounds"] for _ in range(7)]
    assert rounds == [0, 4, 3, 3, 3, 3, 4]  # 3.2 each, the fraction carried over


def test_observations_instead_of_contexts_teach_the_same(new: Callable) -> None:
    """Encoding anew gives what was kept: the frozen encoder does not change."""
    histories = []
    for keep in (True, False):
        algorithm = new(keep_context=keep)
        rollouts = experience(algorithm)
        histories.append([algorithm.update(rewarded(rollouts.collect())) for _ in range(4)])
        stored = algorithm.off_policy.replay.all()
        assert ("model_input" in stored.keys()) is not keep
        assert ("model_input" in stored["next"].keys()) is not keep
        assert ("context" in stored.keys()) is keep
        assert ("context" in stored["next"].keys()) is keep
    for first, second in zip(*histories, strict=True):
        assert first == pytest.approx(second, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("keep", [False, True])
def test_demonstrations_teach_the_action_critic(
    keep: bool, new: Callable, demonstrations_file: Path
) -> None:
    settings = replace(SMALL, offline_share=0.5, demonstrations=demonstrations_file)
    algorithm = new(off_policy=settings, keep_context=keep)
    rollouts = experience(algorithm)
    for _ in range(3):
        assert all(
            torch.isfinite(
                torch.tensor(list(algorithm.update(rewarded(rollouts.collect())).values()))
            )
        )
    memory = algorithm.off_policy
    assert memory.demonstrations is not None
    online, offline = memory.replay.all(), memory.demonstrations.all()
    assert len(online) == 48
    shapes = [
        {key: value.shape for key, value in rows[0].flatten_keys(".").items()}
        for rows in (online, offline)
    ]
    assert shapes[0] == shapes[1]
    chunk = rl.Demonstrations.load(demonstrations_file).chunks(2)["action"]
    normalized = algorithm.policy.preprocessor.normalize_action(chunk).flatten(1)
    assert torch.allclose(offline["chunk"], normalized)


def test_demonstrations_without_noise_are_refused_where_noise_is_learned_from() -> None:
    with pytest.raises(ValueError, match=r"offline_share=0\.5: demonstrations have actions but no"):
        DSRLConfig(variant="sac", off_policy=replace(SMALL, offline_share=0.5))


def test_evaluation_acts_as_deployed(new: Callable, tmp_path: Any) -> None:
    algorithm = new()
    rollouts = experience(algorithm)
    for _ in range(3):
        algorithm.update(rewarded(rollouts.collect()))
    obs = sub_dict(rollouts.collect(), (slice(None), 0)).select("model_input")
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        acted = algorithm.actor(obs.clone())["action"]
    rl_policy = algorithm.actor.policy
    assert rl_policy.noise_source is algorithm.source
    assert torch.equal(acted, rl_policy.sample_actions(ModelInput.of(obs)))


# The noise-aliased variant on flows that are known


def analytic(algorithm: DSRL, flow: Callable[[Tensor], Tensor], value: Callable) -> None:
    """Replace the flow by a function of the noise and the action critics by a function."""
    algorithm.chunk_of = lambda rows, latent: flow(latent)  # type: ignore[method-assign]
    algorithm.off_policy.value = lambda batch, read, chunk: value(chunk)  # type: ignore


def distilled(
    new: Callable, flow: Callable[[Tensor], Tensor], value: Callable
) -> tuple[DSRL, Callable[[Tensor], Tensor]]:
    """Return an algorithm whose noise critic was distilled, and its values of latents (B, 2)."""
    algorithm = new(off_policy=replace(SMALL, hidden=(64, 64), critic_learning_rate=3e-3))
    analytic(algorithm, flow, value)
    read = torch.zeros(256, algorithm.source.input_dim)
    batch = TensorDict({"critic_input": read, "elapsed": torch.zeros(256, 1)}, batch_size=[256])
    for _ in range(600):
        algorithm.distil_step(batch)

    def values(latent: Tensor) -> Tensor:
        rows = torch.zeros(len(latent), algorithm.source.input_dim)
        with torch.no_grad():
            return algorithm.noise_critic(rows, latent, torch.zeros(len(latent), 1)).mean(0)

    return algorithm, values


GRID = torch.cartesian_prod(torch.linspace(-1.3, 1.3, 14), torch.linspace(-1.3, 1.3, 14))
BEST = torch.tensor([0.6, -0.4])


def near(action: Tensor) -> Tensor:
    """Value of an action: how near it is to the best one."""
    return -(action - BEST).square().sum(-1)


def test_with_the_identity_as_flow_noise_and_actions_have_equal_values(new: Callable) -> None:
    _, values = distilled(new, lambda latent: latent, near)
    error = (values(GRID) - near(GRID)).abs().mean()
    assert error < 0.1
    optimum = GRID[values(GRID).argmax()]
    assert torch.allclose(optimum, GRID[near(GRID).argmax()], atol=0.21)  # a cell of the grid
    _, wrong = distilled(new, lambda latent: -latent, near)  # control: another flow
    assert (wrong(GRID) - near(GRID)).abs().mean() > 0.5


def test_noises_that_mean_one_action_are_worth_the_same(new: Callable) -> None:
    """The flow |w|: both signs of the noise; the optimum is where |w| is best."""

    def near_positive(action: Tensor) -> Tensor:
        return near(action * torch.tensor([1.0, -1.0]))

    _, values = distilled(new, torch.abs, near_positive)
    assert (values(GRID) - values(-GRID)).abs().mean() < 0.15
    optimum = GRID[values(GRID).argmax()].abs()
    assert torch.allclose(optimum, BEST.abs(), atol=0.25)
    spread = values(GRID).std()
    assert (values(GRID) - values(GRID.roll(5, 0))).abs().mean() > 0.3 * spread  # control


def test_distillation_noise_is_inside_the_bound_and_half_the_actors(new: Callable) -> None:
    algorithm = new(steering=SteeringConfig(magnitude=1.0, hidden=(8,)))
    with torch.no_grad():
        algorithm.source.actor.net[-1].bias[:2] = 3.0  # the actor sits at the upper bound
        algorithm.source.actor.net[-1].bias[2:] = -5.0
        latent = algorithm.distillation_noise(torch.zeros(20_000, algorithm.source.input_dim))
    assert latent.abs().max() <= 1.0
    at_bound = (latent > 0.99).all(1)
    assert float(at_bound.float().mean()) == pytest.approx(0.5, abs=0.02)
    normal = latent[~at_bound]
    variance = 1 - 2 * 0.24197 / 0.68269  # of a standard normal cut at 1
    assert float(normal.var()) == pytest.approx(variance, abs=0.02)
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.02)


# Learning


def one_step_rollout(algorithm: DSRL, num: int) -> TensorDict:
    """Return a rollout (num, 1) of a task of one decision: reward 1 for positive actions."""
    td = observed(algorithm.policy, torch.zeros(num, 4), elapsed=torch.zeros(num, 1))
    seen = td["model_input"].clone()
    with set_exploration_type(ExplorationType.RANDOM):
        td = algorithm.actor(td)
    good = (td["action"][:, 0, :1] > 0).float()
    yes, no = torch.ones(num, 1, dtype=torch.bool), torch.zeros(num, 1, dtype=torch.bool)
    td["next"] = TensorDict(
        {
            "state": torch.zeros(num, 4),
            "model_input": seen,
            "elapsed": torch.ones(num, 1),
            "reward_steps": torch.cat([good, torch.zeros_like(good)], 1),
            "live": torch.cat([yes, no], 1),
            "duration": torch.ones(num, 1, dtype=torch.int64),
            "terminated": yes,
            "truncated": no,
            "done": yes,
            "invalid": no,
        },
        batch_size=[num],
    )
    return td[:, None]


@pytest.fixture
def two_modes(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Replace every flow by one of two modes: action 1 for three in ten noises, else -1."""
    switch = {"ignores the noise": False}

    def decode(self: NoiseSourceActor, context: object, latent: Tensor) -> Tensor:
        drawn = torch.randn(len(latent)) if switch["ignores the noise"] else latent[:, 0]
        mode = torch.where(drawn > 0.5244, 1.0, -1.0)
        return mode[:, None, None].expand(-1, *self.policy.chunk_shape).clone()

    monkeypatch.setattr(NoiseSourceActor, "decode", decode)
    return switch


def trained(new: Callable, variant: str) -> tuple[DSRL, list[float]]:
    """Return an algorithm after 1,920 decisions of the two-mode task, and success over time."""
    settings = replace(
        SMALL,
        capacity=4000,
        minibatch_size=64,
        hidden=(32, 32),
        critic_learning_rate=3e-3,
        warmup_decisions=320,
        warmup_rounds=50,
        updates_per_decision=0.25,
    )
    algorithm = new(
        variant,
        off_policy=settings,
        actor_learning_rate=3e-3,
        target_entropy=-0.5,
    )
    algorithm.policy.preprocessor.action_offset.zero_()
    success = []
    for _ in range(30):
        rollout = one_step_rollout(algorithm, 64)
        success.append(float(rollout["next", "reward_steps"].sum() / 64))
        algorithm.update(rollout)
    return algorithm, success


@both_variants
def test_steering_finds_the_mode_that_the_base_rarely_takes(
    variant: str, new: Callable, two_modes: dict[str, bool]
) -> None:
    algorithm, success = trained(new, variant)
    assert sum(success[:5]) / 5 == pytest.approx(0.3, abs=0.08)
    assert sum(success[-5:]) / 5 > 0.95
    obs = observed(algorithm.policy, torch.zeros(1, 4))
    assert (algorithm.policy.sample_actions(ModelInput.of(obs))[:, 0, 0] > 0).all()


def test_a_sampler_that_ignores_the_noise_cannot_be_steered(
    new: Callable, two_modes: dict[str, bool]
) -> None:
    """Negative control of the test above."""
    two_modes["ignores the noise"] = True
    _, success = trained(new, "sac")
    assert sum(success[-5:]) / 5 == pytest.approx(0.3, abs=0.1)


# What is refused


def test_a_loss_that_is_not_finite_stops(new: Callable) -> None:
    algorithm = new()
    rollouts = experience(algorithm)
    for _ in range(2):
        algorithm.update(rewarded(rollouts.collect()))
    batch: TensorDictBase = algorithm.off_policy.sample()
    batch["critic_input"][:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"actor loss is nan in round \d+; lower its"):
        algorithm.actor_step(batch)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="actor_every=0 must be at least 1"):
        DSRLConfig(actor_every=0)
    with pytest.raises(ValueError, match=r"initial_temperature=0\.0 must be above 0"):
        DSRLConfig(initial_temperature=0.0)
