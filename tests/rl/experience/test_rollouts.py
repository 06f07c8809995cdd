"""`Rollouts`: whole and true episodes, whoever uses the environment in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tensordict import TensorDictBase
from torch import Tensor

from pitune import envs, rl
from pitune.envs import CheckedEnv
from pitune.envs.mock.reach import STEP, Reach
from pitune.experiments.films.film import FilmedEnv
from pitune.policies import Actor
from pitune.rl.experience.sub_dict import sub_dict

NUM_ENVS, NUM_CHUNKS = 4, 5


def make_env() -> CheckedEnv:
    return CheckedEnv(Reach(NUM_ENVS, max_episode_steps=9))


def new(name: str, policy: object) -> rl.Algorithm:
    torch.manual_seed(0)
    config = rl.GRPOConfig(group_size=2) if name == "grpo" else rl.preset(name)
    return rl.make(config, policy)  # type: ignore[arg-type]


def broken_decisions(rollout: TensorDictBase) -> Tensor:
    """Return a mask (E, T) of decisions whose steps do not lead from their state to the next."""
    after = sub_dict(rollout, "next")
    point, goal = rollout["state"][..., :2], rollout["state"][..., 2:]
    for step in range(rollout["action"].shape[2]):
        moved = (point + STEP * rollout["action"][:, :, step].clamp(-1, 1)).clamp(0, 1)
        point = torch.where(after["live"][..., step : step + 1], moved, point)
    wrong = (after["state"][..., :2] - point).abs().amax(-1) > 1e-5
    wrong |= (after["state"][..., 2:] != goal).any(-1) & after["live"].any(-1)
    # inside an episode the next decision begins where this one ended
    goes_on = ~after["done"].squeeze(-1)[:, :-1]
    gap = (after["state"][:, :-1] != rollout["state"][:, 1:]).any(-1) & goes_on
    wrong[:, :-1] |= gap
    return wrong


def reset_all(env: CheckedEnv, _: Actor) -> None:
    env.reset(torch.arange(100, 100 + NUM_ENVS))


def reset_one(env: CheckedEnv, _: Actor) -> None:
    env.reset(torch.tensor([7]), torch.tensor([2]))


def step_all(env: CheckedEnv, _: Actor) -> None:
    env.reset(torch.arange(NUM_ENVS))
    env.step(torch.ones(NUM_ENVS, 2), torch.ones(NUM_ENVS, dtype=torch.bool))


def step_one(env: CheckedEnv, _: Actor) -> None:
    env.step(torch.ones(NUM_ENVS, 2), torch.arange(NUM_ENVS) == 1)


def evaluate(env: CheckedEnv, actor: Actor) -> None:
    rl.evaluate(env, actor, 6)


def evaluate_few(env: CheckedEnv, actor: Actor) -> None:
    rl.evaluate(env, actor, 1)


def another_rollout(env: CheckedEnv, actor: Actor) -> None:
    other = rl.Rollouts(env, rl.PPO(rl.PPOConfig(), actor.policy), 3, seed=5)
    other.collect()


def demonstrate(env: CheckedEnv, _: Actor) -> None:
    rl.collect_demonstrations(env, 1, seed=0)


def film(env: CheckedEnv, actor: Actor) -> None:
    rl.evaluate(FilmedEnv(env), actor, 1)


OTHERS = (
    reset_all,
    reset_one,
    step_all,
    step_one,
    evaluate,
    evaluate_few,
    another_rollout,
    demonstrate,
    film,
)


@pytest.mark.parametrize("when", ["before the first rollout", "between two", "between others"])
@pytest.mark.parametrize("name", ["ppo", "grpo", "wsrl"])
@pytest.mark.parametrize("use", OTHERS)
def test_a_rollout_is_true_whatever_else_used_the_environment(
    use: Callable, name: str, when: str, tiny_policy: Callable
) -> None:
    env, algorithm = make_env(), new(name, tiny_policy())
    rollouts = rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0)
    if when == "between others":
        rollouts.collect()
        rollouts.collect()
    elif when == "between two":
        rollouts.collect()
    if use is not step_one or when != "before the first rollout":  # nothing runs yet
        use(env, algorithm.actor)
    rollout = rollouts.collect()
    assert not broken_decisions(rollout).any()
    assert (rollout["elapsed"][:, 0] == 0).all()  # begun anew
    assert not broken_decisions(rollouts.collect()).any()


def test_a_rollout_on_a_stale_observation_would_be_seen(tiny_policy: Callable) -> None:
    """Negative control: the check of the test above finds a reset inside an episode."""
    env = make_env()
    rollouts = rl.Rollouts(env, new("ppo", tiny_policy()), NUM_CHUNKS, seed=0)
    rollouts.collect()
    before = env.num_calls
    env.reset(torch.arange(100, 100 + NUM_ENVS))
    env.num_calls = before  # unnoticed
    assert broken_decisions(rollouts.collect()).any()


def test_episodes_go_on_where_nobody_else_used_the_environment(tiny_policy: Callable) -> None:
    rollouts = rl.Rollouts(make_env(), new("ppo", tiny_policy()), 3, seed=0)
    first, second = rollouts.collect(), rollouts.collect()
    goes_on = ~first["next", "done"][:, -1, 0]
    assert goes_on.any()
    assert torch.equal(first["next", "state"][goes_on, -1], second["state"][goes_on, 0])
    assert (second["elapsed"][goes_on, 0] > 0).all()


def test_every_new_beginning_has_starts_of_its_own(tiny_policy: Callable) -> None:
    env, algorithm = make_env(), new("ppo", tiny_policy())
    rollouts = rl.Rollouts(env, algorithm, 2, seed=0)
    starts = []
    for _ in range(4):
        starts.append(rollouts.collect()["state"][:, 0])
        rl.evaluate(env, algorithm.actor, 4)
    assert len(torch.cat(starts).unique(dim=0)) == 4 * NUM_ENVS


@pytest.mark.parametrize(
    "steps",
    [
        ("evaluate", "collect", "learn", "evaluate"),
        ("collect", "evaluate", "learn", "collect", "evaluate"),
        ("collect", "learn", "evaluate", "collect", "learn", "evaluate"),
        ("evaluate", "evaluate", "collect", "collect", "learn"),
    ],
)
def test_the_three_steps_work_in_any_order(steps: tuple[str, ...], tiny_policy: Callable) -> None:
    env = make_env()
    algorithm = rl.PPO(rl.PPOConfig(), tiny_policy())
    rollouts = rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0)
    rollout: TensorDictBase | None = None
    for step in steps:
        if step == "collect":
            rollout = rollouts.collect()
            assert not broken_decisions(rollout).any()
        elif step == "learn":
            assert rollout is not None
            algorithm.update(rollout)
        else:
            rl.evaluate(env, algorithm.actor, 4)


# Success


class Passing(Reach):
    """Solved at the third step of each episode alone. Success ends no episode."""

    def step(
        self, action: Tensor, active: Tensor, pictures: Tensor | None = None
    ) -> envs.StepResult:
        result = super().step(action, active, pictures)
        over = (self.steps >= self.spec.max_episode_steps) & active
        info = {**result.info, "success": (self.steps == 3) & active}
        return result._replace(terminated=torch.zeros_like(over), truncated=over, info=info)


@pytest.mark.parametrize("rule", ["once", "at_end"])
@pytest.mark.parametrize("num_chunks", [1, 3, 10])
def test_success_is_the_same_for_rollouts_evaluations_and_learners(
    rule: envs.SuccessRule, num_chunks: int, tiny_policy: Callable
) -> None:
    """The episodes have five decisions, of which only the second sees success."""
    expected = float(rule == "once")
    env = CheckedEnv(Passing(NUM_ENVS, max_episode_steps=10), success=rule)
    algorithm = new("filtered_bc", tiny_policy())
    assert isinstance(algorithm, rl.FilteredBC)
    rollouts = rl.Rollouts(env, algorithm, num_chunks, seed=0)
    rates, cloned = [], 0
    for _ in range(20 // num_chunks):
        rollout = rollouts.collect()
        rates.append(rl.rollout_metrics(rollout).get("train/success_rate"))
        cloned += len(algorithm.successes(rollout))
    assert {rate for rate in rates if rate is not None} == {expected}
    assert (cloned > 0) == bool(expected)
    if num_chunks == 10:
        assert cloned == expected * 20 * NUM_ENVS

    # whole episodes in groups
    grouped = new("grpo", tiny_policy())
    assert isinstance(grouped, rl.GRPO)
    metrics = grouped.update(rl.Rollouts(env, grouped, 10, seed=0).collect())
    assert (metrics["solved_groups"], metrics["kept_groups"]) == (expected, 0.0)
    assert rl.evaluate(env, algorithm.actor, 6).success_rate == expected
    demonstrated = env.spec.max_episode_steps * 2 if expected else 0
    if expected:
        assert len(rl.collect_demonstrations(env, 2, seed=0).action) == demonstrated
    else:
        with pytest.raises(RuntimeError, match="succeeded in 0 of"):
            rl.collect_demonstrations(env, 2, seed=0)


def test_a_broken_episode_is_no_success(tiny_policy: Callable) -> None:
    """It was solved before the simulator broke down."""

    class Breaking(Passing):
        def step(
            self, action: Tensor, active: Tensor, pictures: Tensor | None = None
        ) -> envs.StepResult:
            result = super().step(action, active, pictures)
            broken = (self.steps == 5) & active & (torch.arange(NUM_ENVS) < 2)
            info = {**result.info, "invalid": broken}
            return result._replace(truncated=result.truncated | broken, info=info)

    env = CheckedEnv(Breaking(NUM_ENVS, max_episode_steps=10))
    algorithm = new("filtered_bc", tiny_policy())
    assert isinstance(algorithm, rl.FilteredBC)
    rollout = rl.Rollouts(env, algorithm, 10, seed=0).collect()
    metrics = rl.rollout_metrics(rollout)
    assert (metrics["train/episodes"], metrics["train/success_rate"]) == (4, 1.0)
    assert metrics["train/invalid"] > 0
    chosen = algorithm.successes(rollout)["model_input", "robot_state"]
    assert len(chosen) == 2 * 10
    assert torch.equal(chosen.unflatten(0, (2, 10)), rollout["state"][2:])
    assert rl.evaluate(env, algorithm.actor, 8).num_invalid == 4


@pytest.mark.parametrize("schedule", ["exponential", "success"])
def test_dgn_needs_success_for_its_schedule_alone(
    schedule: str, small_preset: Callable, tiny_policy: Callable
) -> None:
    config = replace(small_preset("dgn"), schedule=schedule)
    algorithm = rl.make(config, tiny_policy())
    env = make_env()
    env.spec = replace(env.spec, success_signal=False, reward="")
    if schedule == "success":
        with pytest.raises(ValueError, match="DGN needs a success signal, mock/Reach has none"):
            rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0)
    else:
        algorithm.update(rl.Rollouts(env, algorithm, NUM_CHUNKS, seed=0).collect())
