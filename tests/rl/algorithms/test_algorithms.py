"""One contract over every registered algorithm, and the registry itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune import envs, policies, rl
from pitune.envs.checked import CheckedEnv
from pitune.envs.mock.reach import Reach
from pitune.policies import FlowPolicy, FlowSDEConfig, LikelihoodActor
from pitune.rl.experience.sub_dict import sub_dict

NAMES = sorted(rl.presets())
every_algorithm = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def new(small_preset: Callable, half_trained: Path) -> Callable[[str], rl.Algorithm]:
    """Make an algorithm around a fresh copy of the same half-trained policy."""

    def make(name: str) -> rl.Algorithm:
        torch.manual_seed(0)
        return rl.make(small_preset(name), policies.load(half_trained))

    return make


def rollouts(algorithm: rl.Algorithm) -> rl.Rollouts:
    torch.manual_seed(0)
    config = envs.EnvConfig(id="mock/Reach", num_envs=4, num_workers=0, max_episode_steps=7)
    return rl.Rollouts(envs.make(config), algorithm, 4, seed=0)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by their path."""
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= flat(item, f"{prefix}/{key}")
        return found
    return {prefix: value}


def assert_equal(first: Any, second: Any) -> None:
    a, b = flat(first), flat(second)
    assert a.keys() == b.keys()
    for key in a:
        same = torch.equal(a[key], b[key]) if isinstance(a[key], Tensor) else a[key] == b[key]
        assert same, key


# Every algorithm


@every_algorithm
def test_every_preset_builds_and_learns(name: str, new: Callable) -> None:
    algorithm = new(name)
    assert isinstance(algorithm, rl.Algorithm)
    assert rl.name_of(algorithm.config) == name
    experience = rollouts(algorithm)
    start = {k: v.clone() for k, v in algorithm.actor.state_dict().items()}
    for number in (1, 2, 3):
        metrics = algorithm.update(experience.collect())
        assert algorithm.num_updates == number
        assert metrics
        assert all(isinstance(value, float) for value in metrics.values()), metrics
    after = algorithm.actor.state_dict()
    assert any(not torch.equal(start[key], after[key]) for key in start), "nothing was learned"


@every_algorithm
def test_rollouts_have_one_row_per_environment_and_decision(name: str, new: Callable) -> None:
    algorithm = new(name)
    experience = rollouts(algorithm)
    rollout = experience.collect()
    if not algorithm.needs.rollouts:
        assert rollout.batch_size == (4, 0)
        assert rl.rollout_metrics(rollout) == {}
        assert experience.num_env_steps == 0
        return
    assert rollout.batch_size == (4, 4)
    assert experience.num_env_steps == int(rollout["next", "duration"].sum())
    assert experience.simulator_seconds > 0
    for key, value in rollout.flatten_keys().items():
        assert isinstance(value, Tensor), key  # strings would corrupt a replay buffer
        assert torch.isfinite(value.float()).all(), key
        assert not value.requires_grad, key


@every_algorithm
def test_an_update_leaves_its_rollout_as_it_is(name: str, new: Callable) -> None:
    algorithm = new(name)
    rollout = rollouts(algorithm).collect()
    before = rollout.clone()
    algorithm.update(rollout)
    assert_equal(before.to_dict(), rollout.to_dict())


@every_algorithm
def test_the_ratio_is_one_before_every_update(name: str, new: Callable, tmp_path: Path) -> None:
    """Also once scales have followed the returns, and on rollouts that were stored and moved."""
    algorithm = new(name)
    experience, seen = rollouts(algorithm), []
    for number in range(5):
        rollout = experience.collect()
        if algorithm.needs.rollouts:
            stored = rollout.memmap(str(tmp_path / str(number))).clone()
            moved = stored.apply(lambda x: x.double().float() if x.is_floating_point() else x)
            assert moved is not None
            rollout = moved
        seen += [v for k, v in algorithm.update(rollout).items() if k == "ratio_deviation"]
    assert all(deviation < 1e-4 for deviation in seen)
    assert bool(seen) == (name in {"ppo", "grpo", "epo", "fpo"})


@pytest.mark.parametrize("name", ["ppo", "grpo", "epo", "fpo"])
def test_a_policy_that_moved_before_its_update_trips_the_ratio(name: str, new: Callable) -> None:
    """Negative control of the test above."""
    algorithm = new(name)
    experience, seen = rollouts(algorithm), []
    for _ in range(4):
        rollout = experience.collect()
        with torch.no_grad():
            algorithm.actor.policy.network.action_out_proj.bias += 0.01
        seen += [v for k, v in algorithm.update(rollout).items() if k == "ratio_deviation"]
    assert seen
    assert max(seen) > 1e-3


@every_algorithm
def test_state_survives_a_file_and_learning_goes_on_alike(
    name: str, new: Callable, half_trained: Path
) -> None:
    first = new(name)
    rollout = rollouts(first).collect()
    for _ in range(2):
        first.update(rollout)
    file = io.BytesIO()
    torch.save(first.training_state(), file)
    file.seek(0)
    second = new(name)
    second.actor.policy.load_state_dict(first.actor.policy.state_dict())
    second.load_training_state(torch.load(file, weights_only=True))
    assert_equal(first.training_state(), second.training_state())
    metrics = []
    for algorithm in (first, second):
        torch.manual_seed(1)
        metrics.append(algorithm.update(rollout))
    assert metrics[0] == metrics[1]
    assert_equal(first.actor.state_dict(), second.actor.state_dict())
    assert_equal(first.training_state(), second.training_state())


@every_algorithm
def test_state_of_another_algorithm_is_refused(name: str, new: Callable) -> None:
    state = {"networks": {"nobody": {}}, "optimizers": {}, "num_updates": 0, "extra": {}}
    with pytest.raises(ValueError, match=r"networks \['nobody'\].*resume with the algorithm that"):
        new(name).load_training_state(state)


@every_algorithm
def test_every_trained_tensor_is_in_the_state_or_in_the_policy(name: str, new: Callable) -> None:
    """What an optimizer moves and no checkpoint holds would be lost on resuming."""
    algorithm = new(name)
    held = {id(p) for p in algorithm.actor.policy.parameters()}
    for network in algorithm.networks.values():
        held |= {id(p) for p in network.parameters()}
    moved = {
        id(p)
        for optimizer in algorithm.optimizers.values()
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert moved
    assert moved <= held


@every_algorithm
def test_every_preset_is_frozen_and_complete(name: str) -> None:
    config = rl.preset(name)
    assert config == rl.presets()[name]
    field = fields(config)[0].name
    with pytest.raises(AttributeError):
        setattr(config, field, None)
    assert replace(config) == config


# Needs


def test_a_policy_that_does_not_fit_is_refused(new: Callable, tiny_policy: Callable) -> None:
    spec = envs.make(envs.EnvConfig(id="mock/Reach", num_envs=2)).spec
    rl.check_fit(tiny_policy(), spec)
    with pytest.raises(ValueError, match="checkpoint's state has 6 dimensions, mock/Reach has 4; "):
        rl.check_fit(tiny_policy(6, 2), spec)
    with pytest.raises(ValueError, match="checkpoint's action has 3 dimensions, mock/Reach has 2"):
        rl.check_fit(tiny_policy(4, 3), spec)


@every_algorithm
def test_a_steered_policy_is_not_fine_tuned_again(name: str, small_preset: Callable) -> None:
    with pytest.raises(
        ValueError, match=r"checkpoint is steered .* go on with its run by --resume"
    ):
        rl.make(small_preset(name), new_steered())


def new_steered() -> FlowPolicy:
    state, action = torch.rand(64, 4), torch.rand(64, 2)
    sampler = policies.SamplerConfig(flow_steps=2, execution_horizon=2)
    base = policies.small_policy(state, action, action_horizon=2, sampler=sampler)
    return base.with_noise_source(policies.SteeringConfig())


def test_missing_cameras_are_named(tiny_policy: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["state", "image/top", "image/side"]
    monkeypatch.setattr(FlowPolicy, "obs_keys", property(lambda _: keys))
    config = envs.EnvConfig(id="mock/Reach", num_envs=2, cameras=("side",))
    message = r"needs cameras \['top'\], mock/Reach was made with \['side'\]; pass --env.cameras"
    with pytest.raises(ValueError, match=message):
        rl.check_fit(tiny_policy(), envs.make(config).spec)


def test_what_an_algorithm_needs_is_asked_of_the_environment(new: Callable) -> None:
    algorithm = new("filtered_bc")
    env = CheckedEnv(Reach(4))
    rl.check_needs(algorithm, env.spec)
    env.spec = replace(env.spec, success_signal=False)
    with pytest.raises(ValueError, match="FilteredBC needs a success signal, mock/Reach has none"):
        rl.Rollouts(env, algorithm, 2, seed=0)
    algorithm.needs = rl.Needs(group_size=2)
    rl.check_needs(algorithm, env.spec)
    env.spec = replace(env.spec, deterministic_reset=False)
    with pytest.raises(ValueError, match="needs groups of 2 equal starts, but a seed does not fix"):
        rl.check_needs(algorithm, env.spec)


def test_an_algorithm_that_needs_groups_gets_them(new: Callable) -> None:
    algorithm = new("filtered_bc")
    algorithm.needs = rl.Needs(group_size=2)
    state = rollouts(algorithm).collect()["state"][:, 0]
    assert torch.equal(state[0], state[1])
    assert torch.equal(state[2], state[3])
    assert not torch.equal(state[0], state[2])


def test_a_restart_begins_episodes_that_no_other_iteration_has(new: Callable) -> None:
    experience = rollouts(new("ppo"))
    starts = []
    for iteration in (0, 1, 2, 1):
        experience.restart(iteration)
        torch.manual_seed(0)
        starts.append(experience.collect()["state"][:, 0])
    assert torch.equal(starts[1], starts[3])
    assert len(torch.cat(starts[:3]).unique(dim=0)) == 12


def test_rollout_metrics_are_those_of_the_episodes_that_ended(new: Callable) -> None:
    rollout = sub_dict(rollouts(new("ppo")).collect(), (slice(2), slice(3))).clone()
    after = sub_dict(rollout, "next")
    for key in ("done", "success", "invalid"):
        after[key][:] = False
    for row, column, success, invalid in ((0, 0, 1, 0), (0, 2, 0, 0), (1, 1, 1, 1), (1, 2, 1, 0)):
        after["done"][row, column] = True
        after["success"][row, column] = bool(success)
        after["invalid"][row, column] = bool(invalid)
    after["reward"][:], after["duration"][:] = 0.5, 2
    assert rl.rollout_metrics(rollout) == {
        "train/episodes": 3.0,
        "train/invalid": 1.0,
        "train/success_rate": pytest.approx(2 / 3),
        "train/reward_per_step": 0.25,
    }
    after["done"][:] = False
    assert "train/success_rate" not in rl.rollout_metrics(rollout)


# The registry


@pytest.fixture
def scratch_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(rl.registry, "_REGISTRY", dict(rl.registry._REGISTRY))


@dataclass(frozen=True, kw_only=True)
class MyConfig(rl.AlgorithmConfig):
    noise_level: float = 0.5


class Mine(rl.Algorithm[MyConfig]):
    def __init__(self, config: MyConfig, policy: FlowPolicy) -> None:
        super().__init__(
            config, LikelihoodActor(policy, FlowSDEConfig(noise_level=config.noise_level))
        )

    def update(self, rollout: TensorDictBase) -> dict[str, float]:
        self.num_updates += 1
        return {"decisions": float(rollout.numel())}


@pytest.mark.usefixtures("scratch_registry")
def test_users_register_their_own(tiny_policy: Callable) -> None:
    assert rl.register("mine", MyConfig)(Mine) is Mine
    assert rl.preset("mine") == MyConfig()
    assert rl.name_of(MyConfig()) == "mine"
    algorithm = rl.make(MyConfig(), tiny_policy())
    assert isinstance(algorithm, Mine)
    assert algorithm.update(rollouts(algorithm).collect()) == {"decisions": 16.0}


@pytest.mark.usefixtures("scratch_registry")
def test_a_name_and_a_config_are_taken_once() -> None:
    with pytest.raises(ValueError, match="algorithm 'ppo' or its MyConfig is registered already"):
        rl.register("ppo", MyConfig)
    with pytest.raises(ValueError, match="algorithm 'mine' or its PPOConfig is registered already"):
        rl.register("mine", rl.PPOConfig)
    assert sorted(rl.presets()) == NAMES


def test_the_error_for_an_unknown_config_lists_the_algorithms(tiny_policy: Callable) -> None:
    message = r"no algorithm takes a MyConfig; registered: .*'ppo'.*Import the module"
    with pytest.raises(ValueError, match=message):
        rl.make(MyConfig(), tiny_policy())


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown algorithm 'filterd_bc'; did you mean 'filtered_"
    ):
        rl.preset("filterd_bc")
    with pytest.raises(ValueError, match=r"unknown algorithm 'zzz'; registered: \['bc', "):
        rl.preset("zzz")
